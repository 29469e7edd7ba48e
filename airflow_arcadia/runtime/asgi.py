"""ASGI 3.0 messages: reading a request, answering it, and noticing that its client has left."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

JSON_HEADERS = ((b"content-type", b"application/json"),)
_ERROR_TYPES = {401: "invalid_api_key", 403: "permission_error", 503: "service_unavailable"}


class ClientLeft(Exception):
    """The client closed its connection before its request was whole."""


async def read_body(receive: Receive) -> bytes:
    """The request's whole body. Raises :class:`ClientLeft`."""
    chunks = []
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise ClientLeft
        chunks.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(chunks)


async def read_json(receive: Receive) -> Any:
    """The request's body as JSON; ``{}`` when it is empty.

    Raises ValueError when it is not valid JSON or nested too deeply, and :class:`ClientLeft`.
    """
    body = await read_body(receive)
    try:
        return json.loads(body or b"{}", parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError("the JSON is nested too deeply") from error


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not valid JSON")


async def respond(
    send: Send, status: int, body: Any, headers: Iterable[tuple[bytes, bytes]] = JSON_HEADERS
) -> None:
    """Answer with a JSON body."""
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})
    await send({"type": "http.response.body", "body": json.dumps(body).encode()})


async def refuse(send: Send, status: int, message: str) -> None:
    """Answer with an error of OpenAI's form."""
    kind = _ERROR_TYPES.get(status, "invalid_request_error")
    await respond(send, status, {"error": {"message": message, "type": kind, "code": status}})


def header(scope: Mapping[str, Any], name: bytes) -> bytes:
    """One request header, or an empty value."""
    return next((bytes(value) for key, value in scope["headers"] if key.lower() == name), b"")


async def disconnected(receive: Receive) -> None:
    """Return once the client has left. The request's body must have been read before."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def run_while_connected(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Run ``work`` to its end, or cancel it as soon as the client leaves."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(disconnected(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)
