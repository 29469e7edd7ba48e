"""``python -m tests.runtime.worker_process PORT``: the middleware in a server process, without an engine.

A prompt is answered in capitals: after ``LONG_S`` when it begins with "long", else after ``SHORT_S``.
"""

import asyncio
import sys
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from airflow_arcadia.batch.openai_format import COMPLETIONS
from airflow_arcadia.runtime.middleware import ArcadiaMiddleware
from airflow_arcadia.worker import PlacedWorker

LONG_S, SHORT_S = 2.0, 0.05


class Completion(BaseModel):
    """A row's body."""

    prompt: str


def serve(port: int) -> None:
    """Until it is ended or drained."""
    app = FastAPI()

    @app.post(COMPLETIONS)
    async def complete(request: Completion, raw_request: Request) -> JSONResponse:
        await asyncio.sleep(LONG_S if request.prompt.startswith("long") else SHORT_S)
        choice = {"index": 0, "text": request.prompt.upper(), "finish_reason": "stop"}
        return JSONResponse({"object": "text_completion", "choices": [choice]})

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"data": [{"id": "tiny"}]}

    spec = PlacedWorker(name="w", model="tiny", port=port, host="127.0.0.1")
    app.add_middleware(ArcadiaMiddleware, spec=spec)
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="error", lifespan="on")


if __name__ == "__main__":
    serve(int(sys.argv[1]))
