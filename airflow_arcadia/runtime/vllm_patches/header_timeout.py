"""Patch: the API server closes connections on which a request's headers do not arrive.

uvicorn waits for them without end, so that clients which open connections and send half a request take the
server's file descriptors one after the other.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from airflow_arcadia.runtime.vllm_patches.gate import apply

TESTED = ("0.32",)
HEADER_TIMEOUT_S = 30.0
"""Seconds between two looks at a connection: it is closed by the second one that finds it waiting."""


def register() -> None:
    """Apply the patch; call it before the server listens."""
    apply("header_timeout", TESTED, lambda: limit_headers(HEADER_TIMEOUT_S))


def limit_headers(timeout_s: float) -> str:
    """Make every new connection of uvicorn's httptools protocol be looked at."""
    original = HttpToolsProtocol.connection_made

    def connection_made(self: Any, transport: asyncio.Transport) -> None:
        original(self, transport)
        self.loop.call_later(timeout_s, _look, self, timeout_s, None)

    HttpToolsProtocol.connection_made = connection_made  # type: ignore[method-assign]
    return f"a request's headers must arrive within {2 * timeout_s:g} s"


def _look(protocol: Any, timeout_s: float, waiting_since: object) -> None:
    """Close the connection if it has waited for headers since the last look.

    :param waiting_since: what :func:`_waits` said then.
    """
    if protocol.transport.is_closing() or protocol not in protocol.connections:
        return  # it has ended, or is a WebSocket by now
    waits = _waits(protocol)
    if waits is not None and waits is waiting_since:
        protocol.transport.close()
    else:
        protocol.loop.call_later(timeout_s, _look, protocol, timeout_s, waits)


def _waits(protocol: Any) -> Any:
    """What came before the request whose headers are awaited; None while a request runs, or none has begun.

    Between requests uvicorn's own keep-alive time-out runs, until the first byte of the next one.
    """
    cycle: Any = protocol.cycle
    if cycle is None:
        return protocol
    idle = protocol.timeout_keep_alive_task is not None
    return cycle if cycle.response_complete and not idle else None
