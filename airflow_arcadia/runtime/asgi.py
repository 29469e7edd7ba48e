"""Calls into an ASGI application of the same process (ASGI 3.0, HTTP scope)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

JSON_HEADERS = ((b"content-type", b"application/json"),)


@dataclass(frozen=True)
class Answer:
    """A whole HTTP answer."""

    status: int
    body: bytes

    def json(self) -> Any:
        """The body as JSON; ``{}`` when it is something else."""
        try:
            return json.loads(self.body)
        except ValueError:
            return {}


async def call(app: App, scope: Scope, method: str, path: str, body: Any = None) -> Answer:
    """One call whose answer is wanted whole."""
    chunks = []
    status = 500
    async for status, chunk in stream(app, scope, method, path, body):  # noqa: B007 - the last one counts
        chunks.append(chunk)
    return Answer(status, b"".join(chunks))


async def stream(
    app: App, scope: Scope, method: str, path: str, body: Any = None
) -> AsyncIterator[tuple[int, bytes]]:
    """One call whose answer is wanted as it comes: ``(status, chunk)`` pairs.

    Leaving the iteration early disconnects, which makes the application stop generating.
    """
    payload = json.dumps(body).encode() if body is not None else b""
    messages: asyncio.Queue[Message | None] = asyncio.Queue()
    gone = asyncio.Event()
    sent = False

    async def receive() -> Message:
        nonlocal sent
        if not sent:
            sent = True
            return {"type": "http.request", "body": payload, "more_body": False}
        await gone.wait()
        return {"type": "http.disconnect"}

    async def run() -> None:
        try:
            await app(request_scope(scope, method, path, len(payload)), receive, messages.put)
        finally:
            await messages.put(None)

    task = asyncio.create_task(run())
    status = 500
    try:
        while (message := await messages.get()) is not None:
            if message["type"] == "http.response.start":
                status = message["status"]
            elif message["type"] == "http.response.body":
                yield status, message.get("body", b"")
        await task
    finally:
        gone.set()
        if not task.done():
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


async def read_body(receive: Receive) -> bytes:
    """The request's whole body. Raises ValueError when the client goes away before its end."""
    chunks = []
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise ValueError("the client went away")
        chunks.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(chunks)


async def read_json(receive: Receive) -> Any:
    """The request's body as JSON. Raises ValueError when it is none."""
    return json.loads(await read_body(receive) or b"{}")


async def respond(
    send: Send, status: int, body: Any, headers: Iterable[tuple[bytes, bytes]] = JSON_HEADERS
) -> None:
    """Answer with a JSON body."""
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})
    await send({"type": "http.response.body", "body": json.dumps(body).encode()})


def header(scope: Mapping[str, Any], name: bytes) -> str:
    """One request header, or an empty string."""
    return next((value.decode("latin-1") for key, value in scope["headers"] if key.lower() == name), "")


def request_scope(outer: Scope, method: str, path: str, length: int) -> Scope:
    """The scope of a JSON request inside another's, or inside the lifespan's."""
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
