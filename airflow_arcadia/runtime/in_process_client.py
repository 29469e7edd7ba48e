"""The batch engine's client for the server whose process it runs in."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any

from airflow_arcadia.batch.transport.http_client import AnswerTimeout, ConnectionLost, Response
from airflow_arcadia.runtime.asgi_client import AsgiClient
from airflow_arcadia.runtime.endpoint_caller import EndpointCaller


class InProcessClient:
    """A :class:`~airflow_arcadia.batch.transport.http_client.Client` without a connection."""

    def __init__(self, caller: EndpointCaller, whole: AsgiClient) -> None:
        self._caller, self._whole = caller, whole
        self._since: dict[asyncio.Task[Response], float] = {}
        self._ended: dict[asyncio.Task[Response], Exception] = {}
        """Why a request was ended by this client."""

    async def post(self, path: str, body: bytes) -> Response:
        """Send JSON. Raises :class:`ConnectionLost` and :class:`AnswerTimeout`."""
        return await self._wait(self._caller.answer(path, body))

    async def get(self, path: str) -> Response:
        """Raises :class:`ConnectionLost` and :class:`AnswerTimeout`."""
        return await self._wait(self._whole.call("GET", path))

    def drop_connections(self) -> None:
        """End all requests that wait for an answer: they fail with :class:`ConnectionLost`."""
        self._end(ConnectionLost("it was closed"), time.monotonic())

    def expire(self, seconds: float) -> None:
        """End requests that have waited longer for their answer: they fail with :class:`AnswerTimeout`."""
        self._end(AnswerTimeout(f"no answer within {seconds:g} s"), time.monotonic() - seconds)

    async def close(self) -> None:
        """End all requests."""
        self.drop_connections()

    async def _wait(self, work: Coroutine[Any, Any, Response]) -> Response:
        task = asyncio.get_running_loop().create_task(work)
        self._since[task] = time.monotonic()
        try:
            return await task
        except asyncio.CancelledError:
            if (error := self._ended.get(task)) is not None:
                raise error from None
            task.cancel()
            raise
        finally:
            del self._since[task]
            self._ended.pop(task, None)

    def _end(self, error: Exception, before: float) -> None:
        for task, since in self._since.items():
            if since <= before and not task.done():
                self._ended[task] = type(error)(*error.args)
                task.cancel()
