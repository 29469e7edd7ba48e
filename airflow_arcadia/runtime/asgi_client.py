"""Calls an ASGI application of the same process, as a client over HTTP would."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

from airflow_arcadia.batch.transport.http_client import Response
from airflow_arcadia.runtime.asgi import JSON_HEADERS, App, Message, Scope


class AsgiClient:
    """See the module. One event loop.

    :param app: the application.
    :param scope: what the server's scopes have in common.
    """

    def __init__(self, app: App, scope: Scope) -> None:
        self._app, self._scope = app, scope
        self._abandoned: set[asyncio.Task[None]] = set()
        """Calls that nobody waits for and that have not ended; the event loop itself keeps no reference."""

    async def call(self, method: str, path: str, body: bytes = b"") -> Response:
        """One whole answer. Cancelling this is to the application as a client that leaves."""
        async with self.request(method, path, body) as exchange:
            content = b"".join([chunk async for chunk in exchange.chunks()])
            return Response(exchange.status, content, exchange.header(b"retry-after"))

    async def call_json(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Status and JSON of one answer; ``{}`` when the answer is not JSON."""
        answer = await self.call(method, path, b"" if body is None else json.dumps(body).encode())
        try:
            return answer.status, json.loads(answer.body)
        except ValueError:
            return answer.status, {}

    @contextlib.asynccontextmanager
    async def request(self, method: str, path: str, body: bytes = b"") -> AsyncIterator[Exchange]:
        """One call whose answer is wanted as it comes; leaving the block early is the client leaving.

        The application is told of it as by a server, and is not cancelled: a handler that vLLM runs in a
        task of its own would otherwise go on generating.
        """
        exchange = Exchange(body)
        scope = request_scope(self._scope, method, path, len(body))
        task = asyncio.create_task(exchange.run(self._app, scope))
        try:
            yield exchange
        finally:
            exchange.leave()
            if not task.done():
                self._abandoned.add(task)
                task.add_done_callback(self._abandoned.discard)


class Exchange:
    """One request and its answer, both ends of it.

    ``status`` and :meth:`header` are those of the answer once its first chunk is there.
    """

    def __init__(self, body: bytes = b"") -> None:
        self.status = 500
        self._headers: dict[bytes, bytes] = {}
        self._body: bytes | None = body
        self._left = asyncio.Event()
        self._started = False
        self._chunks: asyncio.Queue[bytes | None] = asyncio.Queue()

    def header(self, name: bytes) -> str | None:
        """A header of the answer."""
        found = self._headers.get(name)
        return None if found is None else found.decode("latin-1")

    async def chunks(self) -> AsyncIterator[bytes]:
        """The answer's body as it comes."""
        while (chunk := await self._chunks.get()) is not None:
            yield chunk

    def leave(self) -> None:
        """Tell the application that nobody waits any more."""
        self._left.set()

    async def run(self, app: App, scope: Scope) -> None:
        """Run the application to its end; what it raises before it answers becomes HTTP 500."""
        try:
            await app(scope, self.receive, self.send)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this request's answer
            if not self._started:
                message = f"{type(error).__name__}: {error}"
                body = {"error": {"message": message, "type": "internal_error", "code": 500}}
                self._chunks.put_nowait(json.dumps(body).encode())
        finally:
            self._chunks.put_nowait(None)

    async def receive(self) -> Message:
        """The application's side: the request, then that the client has left."""
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """The application's side: a part of the answer."""
        if message["type"] == "http.response.body":
            self._chunks.put_nowait(message.get("body", b""))
        elif message["type"] == "http.response.start":
            self._started = True
            self.status = message["status"]
            self._headers = {bytes(key).lower(): bytes(value) for key, value in message.get("headers") or ()}


def request_scope(outer: Scope, method: str, path: str, length: int) -> Scope:
    """The scope of a JSON request, with what ``outer`` says of the server."""
    headers = [*JSON_HEADERS, (b"content-length", str(length).encode())]
    inner = {key: value for key, value in outer.items() if key not in {"path_params", "route", "endpoint"}}
    return inner | {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": headers,
    }
