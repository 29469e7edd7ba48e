"""The middleware over the application of :mod:`tests.runtime.app`, served over HTTP."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn

from airflow_arcadia.ports import free_port
from airflow_arcadia.runtime.middleware import ArcadiaMiddleware
from airflow_arcadia.worker import PlacedWorker
from tests.batch.reading import until
from tests.runtime.app import Served


@asynccontextmanager
async def worker(**settings: Any) -> AsyncIterator[tuple[str, Served]]:
    """URL of a server with the middleware, and the application below it.

    :param settings: fields of its :class:`PlacedWorker`.
    """
    served, port = Served(), free_port()
    spec = PlacedWorker(**{"name": "w", "model": "tiny", "port": port, "host": "127.0.0.1", **settings})
    served.app.add_middleware(ArcadiaMiddleware, spec=spec)
    config = uvicorn.Config(served.app, host="127.0.0.1", port=port, log_level="error", lifespan="on")
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    await until(lambda: server.started and served.finished == 1)  # its first generation
    served.begun = served.finished = 0
    try:
        yield f"http://127.0.0.1:{port}", served
    finally:
        server.should_exit = True
        served.go.set()
        await task
