"""Answers rows inside the server's own process, by the server's own endpoints.

A row goes straight to the function that FastAPI has for its URL, with the request model that the function
asks for: no HTTP, no routing, no middleware. Whatever that does not answer with 200 (an invalid row, a dead
engine, an endpoint of another form) is sent again as a whole ASGI call, whose answer is the server's own;
unless the row was cancelled.
"""

from __future__ import annotations

import asyncio
import contextlib
import typing
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from airflow_arcadia.batch.openai_format import URLS
from airflow_arcadia.batch.transport.http_client import Response
from airflow_arcadia.runtime.asgi import App, Receive, Scope
from airflow_arcadia.runtime.asgi_client import AsgiClient, Exchange, request_scope

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


class EndpointCaller:
    """See the module.

    :param app: the application below our middleware.
    :param scope: what the server's scopes have in common; ``app`` in it is the FastAPI application.
    """

    def __init__(self, app: App, scope: Scope) -> None:
        self._scope = scope
        self._whole = AsgiClient(app, scope)
        self._endpoints: dict[str, _Endpoint | None] = {}
        self.rows = 0
        """Rows that are being answered."""

    async def answer(self, url: str, body: bytes) -> Response:
        """One row's answer. Cancelling this ends its generation."""
        if url not in URLS:
            return _NOT_THERE
        self.rows += 1
        try:
            return await self._call_endpoint(url, body) or await self._whole.call("POST", url, body)
        finally:
            self.rows -= 1

    async def _call_endpoint(self, url: str, body: bytes) -> Response | None:
        if url not in self._endpoints:
            self._endpoints[url] = find_endpoint(self._scope.get("app"), url)
        endpoint = self._endpoints[url]
        if endpoint is None:
            return None
        scope = request_scope(self._scope, "POST", url, len(body))
        request = endpoint.request_type(scope, Exchange().receive)
        # Whatever fails here fails again in the whole call, which tells it in the server's own words.
        with contextlib.suppress(Exception):
            keywords = {endpoint.body_name: endpoint.parse(body), endpoint.request_name: request}
            answer = await endpoint.call(**keywords)
            if answer.status_code == 200:
                return Response(200, answer.body, None)
        if _is_cancelled():
            # vLLM answers a cancelled request with an error; a whole call would generate it again.
            raise asyncio.CancelledError
        return None


def _is_cancelled() -> bool:
    """Whether this task was cancelled, even where what it waited for has swallowed that."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


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
