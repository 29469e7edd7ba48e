"""Answers rows inside the server's own process, by the server's own endpoints.

A row goes straight to the function that FastAPI has for its URL, with the request model that the function
asks for: no HTTP, no routing, no middleware. Whatever that does not answer with 200 (a row that is wrong, an
engine that is dead, an endpoint of another form) is asked again as a whole ASGI call, whose answer is the
server's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import typing
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from airflow_arcadia.batch.transport.bundles import URLS
from airflow_arcadia.batch.transport.http_client import Response
from airflow_arcadia.runtime.asgi import App, Message, Receive, Scope, request_scope

_NOT_THERE = Response(404, b'{"error":{"message":"A row cannot ask for this URL.","code":404}}', None)
_KNOWN_WRAPPERS = frozenset({"with_cancellation.<locals>.wrapper", "load_aware_call.<locals>.wrapper"})
"""vLLM's decorators of an endpoint. One ends it when its client goes away, which cancelling does here; the
other counts for ``/load``, where that is switched on."""


@dataclass(frozen=True)
class _Endpoint:
    """A FastAPI endpoint of a request model and the raw request.

    :param call: the endpoint; its keywords are ``body_name`` and ``request_name``.
    :param parse: the model from JSON.
    :param request_type: the raw request from an ASGI scope and its ``receive``.
    """

    call: Callable[..., Awaitable[Any]]
    parse: Callable[[bytes], Any]
    body_name: str
    request_name: str
    request_type: Callable[[Scope, Receive], Any]


class Desk:
    """See the module.

    :param app: the application below our middleware.
    :param scope: what the server's scopes have in common; ``app`` in it is the FastAPI application.
    """

    def __init__(self, app: App, scope: Scope) -> None:
        self._app, self._scope = app, scope
        self._endpoints: dict[str, _Endpoint | None] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self.rows = 0
        """Rows that are being answered."""

    async def answer(self, url: str, body: bytes) -> Response:
        """One row's answer. Cancelling it ends its generation."""
        if url not in URLS:
            return _NOT_THERE
        self.rows += 1
        try:
            return await self._ask_endpoint(url, body) or await self.call("POST", url, body)
        finally:
            self.rows -= 1

    async def call(self, method: str, path: str, body: bytes = b"") -> Response:
        """One whole ASGI call. Cancelling it is to the application as a client that goes away."""
        exchange = _Exchange(body)
        scope = request_scope(self._scope, method, path, len(body))
        task = asyncio.ensure_future(self._app(scope, exchange.receive, exchange.send))
        try:
            # What the application raises it has answered before, as HTTP 500.
            with contextlib.suppress(Exception):
                await asyncio.shield(task)
        except asyncio.CancelledError:
            exchange.leave()
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)
            raise
        return exchange.answer

    async def _ask_endpoint(self, url: str, body: bytes) -> Response | None:
        if url not in self._endpoints:
            self._endpoints[url] = find_endpoint(self._scope.get("app"), url)
        endpoint = self._endpoints[url]
        if endpoint is None:
            return None
        exchange = _Exchange(b"")
        request = endpoint.request_type(request_scope(self._scope, "POST", url, len(body)), exchange.receive)
        # Whatever goes wrong the whole call meets again, and tells it in the server's own words.
        with contextlib.suppress(Exception):
            keywords = {endpoint.body_name: endpoint.parse(body), endpoint.request_name: request}
            answer = await endpoint.call(**keywords)
            if answer.status_code == 200:
                return Response(200, answer.body, None)
        return None


def find_endpoint(app: Any, url: str) -> _Endpoint | None:
    """The endpoint for a URL, if it has the form that vLLM's have."""
    state = getattr(app, "state", None)
    if getattr(state, "enable_server_load_tracking", False):
        return None
    for route in getattr(app, "routes", ()):
        if getattr(route, "path", None) == url and "POST" in (getattr(route, "methods", None) or ()):
            return _read(getattr(route, "endpoint", None))
    return None


def _read(function: Any) -> _Endpoint | None:
    while getattr(getattr(function, "__code__", None), "co_qualname", None) in _KNOWN_WRAPPERS:
        function = function.__wrapped__
    if function is None or hasattr(function, "__wrapped__"):
        return None
    try:
        types = {name: kind for name, kind in typing.get_type_hints(function).items() if name != "return"}
    except (NameError, TypeError):
        return None
    models = [name for name, kind in types.items() if hasattr(kind, "model_validate_json")]
    requests = [name for name, kind in types.items() if hasattr(kind, "receive")]
    if len(models) != 1 or len(requests) != 1 or len(types) != 2:
        return None
    parse = types[models[0]].model_validate_json
    return _Endpoint(function, parse, models[0], requests[0], types[requests[0]])


class _Exchange:
    """Both ends of one ASGI call."""

    def __init__(self, body: bytes) -> None:
        self._body: bytes | None = body
        self._gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._status = 500
        self._retry_after: str | None = None
        self._chunks: list[bytes] = []

    @property
    def answer(self) -> Response:
        """What was sent so far."""
        return Response(self._status, b"".join(self._chunks), self._retry_after)

    def leave(self) -> None:
        """Tell the application that nobody waits any more."""
        if not self._gone.done():
            self._gone.set_result(None)

    async def receive(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await asyncio.shield(self._gone)
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.body":
            self._chunks.append(message.get("body", b""))
        elif message["type"] == "http.response.start":
            self._status = message["status"]
            headers = dict(message.get("headers") or ())
            if (after := headers.get(b"retry-after")) is not None:
                self._retry_after = after.decode("latin-1")
