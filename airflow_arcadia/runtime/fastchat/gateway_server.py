"""A second HTTP server of the worker's process, which serves FastChat's protocol and nothing else.

FastChat's gateway sends no API key. Where the worker asks for one, this server is how the gateway reaches it:
at a port of its own, which a network policy opens to the gateway alone.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import uvicorn

from airflow_arcadia.runtime.asgi import App

_KEEP_ALIVE_S = 75


class GatewayServer:
    """See the module. It ends with the task that runs :meth:`serve`.

    :param app: what answers.
    :param host: address to listen on.
    """

    def __init__(self, app: App, host: str, port: int) -> None:
        self._address = (host, port)
        config = uvicorn.Config(
            app,
            interface="asgi3",
            lifespan="off",
            access_log=False,
            log_config=None,
            timeout_keep_alive=_KEEP_ALIVE_S,
        )
        self._server = _Server(config)

    async def serve(self) -> None:
        """Serve until cancelled. Raises OSError when the port is taken."""
        family = socket.AF_INET6 if ":" in self._address[0] else socket.AF_INET
        with socket.create_server(self._address, family=family) as listener:
            await self._server.serve([listener])


class _Server(uvicorn.Server):
    """uvicorn's server, which leaves the process's signals to the server beside it."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
