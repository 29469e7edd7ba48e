"""Requests to one server over a pool of kept connections, on aiohttp.

:class:`Client` is what a batch asks of its connection to a server; :class:`HttpClient` is the one for servers
in other processes. Redirects are not followed: they would take the API key elsewhere.
"""

from __future__ import annotations

import asyncio
import io
import socket
import ssl
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlsplit

import aiohttp

from airflow_arcadia.exceptions import BatchInputError

IDLE_SECONDS = 4.0
"""Connections unused for longer are not used again: vLLM's server closes them after 5 s."""
CONNECT_TIMEOUT = 10.0
MAX_ANSWER_BYTES = 64 * 2**20
"""A longer answer is refused: it is a stream without an end, not an answer."""
_STALE_S = 1.0
"""A kept connection that ends within this time of being used again was closed by the server before."""
_LARGE_BODY = 2**20 - 1
"""aiohttp wants larger bodies in pieces."""
_VANISHED_MS = 60_000
"""A peer whose kernel acknowledges nothing for this long is gone, e.g. its node was switched off."""


class Response(NamedTuple):
    """A whole answer."""

    status: int
    body: bytes
    retry_after: str | None


class ConnectionLost(Exception):
    """The connection ended before the answer was whole."""


class NotConnected(ConnectionLost):
    """The connection never came about: nothing was sent."""


class AnswerTimeout(Exception):
    """No whole answer came in time."""


class BadAnswer(Exception):
    """What came back is not an answer to the request: too long, or not in the protocol's form."""


class Client(Protocol):
    """What a batch asks of its connection to a server. One event loop only."""

    async def post(self, path: str, body: bytes) -> Response:
        """Send JSON. Raises :class:`ConnectionLost`, :class:`AnswerTimeout` and :class:`BadAnswer`."""

    async def get(self, path: str) -> Response:
        """Raises :class:`ConnectionLost`, :class:`AnswerTimeout` and :class:`BadAnswer`."""

    def drop_connections(self) -> None:
        """End all requests that wait for an answer: they fail with :class:`ConnectionLost`."""

    def expire(self, seconds: float) -> None:
        """End requests that have waited longer for their answer: they fail with :class:`AnswerTimeout`."""

    async def close(self) -> None:
        """End all requests and release what the client holds."""


class PendingRequests:
    """Requests in progress, each of which can be ended from outside with an error of its own."""

    def __init__(self) -> None:
        self._since: dict[asyncio.Task[Response], float] = {}
        self._reasons: dict[asyncio.Task[Response], Exception] = {}

    async def run(self, request: Coroutine[Any, Any, Response]) -> Response:
        """Await the request. Cancelling this cancels the request."""
        task = asyncio.get_running_loop().create_task(request)
        self._since[task] = time.monotonic()
        try:
            return await task
        except asyncio.CancelledError:
            if (reason := self._reasons.pop(task, None)) is not None:
                raise reason from None
            task.cancel()
            raise
        finally:
            del self._since[task]

    def end(self, reason: Exception, older_than: float = 0.0) -> None:
        """Fail every request that is older than so many seconds; each gets a copy of the reason."""
        began_before = time.monotonic() - older_than
        for task, since in self._since.items():
            if since <= began_before and not task.done():
                # Each its own: an error that is raised twice carries both tracebacks.
                self._reasons[task] = type(reason)(*reason.args)
                task.cancel()


class HttpClient:
    """Requests to one server. The certificates that ``SSL_CERT_FILE`` names are trusted, too.

    :param url: base URL, ``http`` or ``https``.
    :param api_key: sent as ``Authorization: Bearer``.
    """

    def __init__(self, url: str, api_key: str | None = None) -> None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise BatchInputError(f"{url!r} is not an HTTP URL.", what_to_do="Use http://host:port.")
        if api_key and not api_key.isprintable():
            raise BatchInputError("The API key has control characters.", what_to_do="Correct the key.")
        path = parts.path.rstrip("/").removesuffix("/v1")
        self._base = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{path}"
        self._secure = parts.scheme == "https"
        self._headers = {"Accept": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._pending = PendingRequests()
        self._session: aiohttp.ClientSession | None = None

    async def post(self, path: str, body: bytes, on_chunk: Callable[[bytes], None] | None = None) -> Response:
        """Send JSON. Raises :class:`ConnectionLost`, :class:`AnswerTimeout` and :class:`BadAnswer`.

        :param on_chunk: takes the body as it comes, if the status is 200; the answer then has none.
        """
        return await self._pending.run(self._exchange("POST", path, body, on_chunk))

    async def get(self, path: str) -> Response:
        """Raises :class:`ConnectionLost`, :class:`AnswerTimeout` and :class:`BadAnswer`."""
        return await self._pending.run(self._exchange("GET", path, None, None))

    def drop_connections(self) -> None:
        """End all requests that wait for an answer: they fail with :class:`ConnectionLost`."""
        self._pending.end(ConnectionLost("it was closed"))

    def expire(self, seconds: float) -> None:
        """End requests that have waited longer for their answer: they fail with :class:`AnswerTimeout`."""
        self._pending.end(AnswerTimeout(f"no answer within {seconds:g} s"), seconds)

    async def close(self) -> None:
        """End all requests and close all connections."""
        self.drop_connections()
        if self._session is not None:
            session, self._session = self._session, None
            await session.close()

    async def _exchange(
        self, method: str, path: str, body: bytes | None, on_chunk: Callable[[bytes], None] | None
    ) -> Response:
        resent = False
        while True:
            use = _Use(time.monotonic())
            try:
                return await self._send(method, path, body, on_chunk, use)
            except NotConnected as error:
                # The first time it may have reached the server, which may have died of it.
                raise ConnectionLost(*error.args) if resent else error from error
            except ConnectionLost:
                if resent or not use.is_stale(time.monotonic()):
                    raise
                resent = True

    async def _send(
        self,
        method: str,
        path: str,
        body: bytes | None,
        on_chunk: Callable[[bytes], None] | None,
        use: _Use,
    ) -> Response:
        data = io.BytesIO(body) if body is not None and len(body) > _LARGE_BODY else body
        headers = {"Content-Type": "application/json"} if body is not None else None
        try:
            async with self._open_session().request(
                method,
                self._base + path,
                data=data,
                headers=headers,
                allow_redirects=False,
                trace_request_ctx=use,
            ) as answer:
                use.answered = True
                if on_chunk is not None and answer.status == 200:
                    async for chunk in answer.content.iter_any():
                        on_chunk(chunk)
                    return Response(200, b"", None)
                content = await _read(answer)
                return Response(answer.status, content, answer.headers.get("Retry-After"))
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise NotConnected(str(error) or f"no connection within {CONNECT_TIMEOUT:g} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise ConnectionLost(str(error) or type(error).__name__) from error

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            trace = aiohttp.TraceConfig()
            trace.on_connection_reuseconn.append(_note_reuse)
            connector = aiohttp.TCPConnector(
                limit=0,
                keepalive_timeout=IDLE_SECONDS,
                ssl=ssl.create_default_context() if self._secure else True,
                socket_factory=_socket,
            )
            self._session = aiohttp.ClientSession(
                connector=connector,
                headers=self._headers,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT),
                trace_configs=[trace],
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session


@dataclass
class _Use:
    """What happened to the connection of a request."""

    began: float
    reused: bool = False
    answered: bool = False

    def is_stale(self, now: float) -> bool:
        """Whether it was closed by the server before it was used again: no one's failure."""
        return self.reused and not self.answered and now - self.began < _STALE_S


async def _note_reuse(session: Any, context: Any, parameters: Any) -> None:
    context.trace_request_ctx.reused = True


async def _read(answer: aiohttp.ClientResponse) -> bytes:
    chunks, size = [], 0
    async for chunk in answer.content.iter_any():
        size += len(chunk)
        if size > MAX_ANSWER_BYTES:
            raise BadAnswer(f"the answer has more than {MAX_ANSWER_BYTES} bytes")
        chunks.append(chunk)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _socket(address: Any) -> socket.socket:
    """A socket that finds out by itself that its peer vanished."""
    made = socket.socket(*address[:3])
    options = (
        ("SO_KEEPALIVE", socket.SOL_SOCKET, 1),
        ("TCP_KEEPIDLE", socket.IPPROTO_TCP, _VANISHED_MS // 2000),
        ("TCP_KEEPINTVL", socket.IPPROTO_TCP, _VANISHED_MS // 6000),
        ("TCP_KEEPCNT", socket.IPPROTO_TCP, 3),
        ("TCP_USER_TIMEOUT", socket.IPPROTO_TCP, _VANISHED_MS),
    )
    for name, level, value in options:
        # Not every system has all of them.
        if (option := getattr(socket, name, None)) is not None:
            made.setsockopt(level, option, value)
    return made
