"""HTTP/1.1 over kept connections, one request at a time on each: what a batch needs, and fast.

A general client spends more time per request than an engine that answers a small model's row. Parsing is
httptools'; proxies and redirects are left out on purpose: bulk goes straight to the worker.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol, cast
from urllib.parse import urlsplit

import httptools

from airflow_arcadia.exceptions import BatchInputError

IDLE_SECONDS = 4.0
"""Connections unused for longer are not used again: vLLM's server closes them after 5 s."""
CONNECT_TIMEOUT = 10.0


class Response(NamedTuple):
    """A whole answer."""

    status: int
    body: bytes
    retry_after: str | None


class ConnectionLost(Exception):
    """The connection ended, or never came about, before the answer was whole."""


class AnswerTimeout(Exception):
    """No whole answer came in time."""


class Client(Protocol):
    """What a batch asks of its way to a server. One event loop only."""

    async def post(self, path: str, body: bytes) -> Response:
        """Send JSON. Raises :class:`ConnectionLost` and :class:`AnswerTimeout`."""

    async def get(self, path: str) -> Response:
        """Raises :class:`ConnectionLost` and :class:`AnswerTimeout`."""

    def drop_connections(self) -> None:
        """End all requests that wait for an answer: they fail with :class:`ConnectionLost`."""

    def expire(self, seconds: float) -> None:
        """End requests that have waited longer for their answer: they fail with :class:`AnswerTimeout`."""


class HttpClient:
    """Requests to one server over a pool of kept connections. One event loop only.

    :param url: base URL, ``http`` or ``https``.
    :param api_key: sent as ``Authorization: Bearer``.
    """

    def __init__(self, url: str, api_key: str | None = None) -> None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise BatchInputError(f"{url!r} is no HTTP URL.", what_to_do="Use http://host:port.")
        if api_key and not api_key.isprintable():
            raise BatchInputError("The API key has control characters.", what_to_do="Correct the key.")
        self._host, self._path = parts.hostname, parts.path.rstrip("/").removesuffix("/v1")
        self._ssl = ssl.create_default_context() if parts.scheme == "https" else None
        self._port = parts.port or (443 if self._ssl else 80)
        self._headers = f"Host: {parts.netloc.rpartition('@')[2]}\r\nAccept: application/json\r\n"
        if api_key:
            self._headers += f"Authorization: Bearer {api_key}\r\n"
        self._idle: list[_Connection] = []
        self._open: set[_Connection] = set()
        self._heads: dict[str, bytes] = {}

    async def post(self, path: str, body: bytes, on_chunk: Callable[[bytes], None] | None = None) -> Response:
        """Send JSON. Raises :class:`ConnectionLost` and :class:`AnswerTimeout`.

        :param on_chunk: takes the body as it comes, if the status is 200; the answer then has none.
        """
        head = self._heads.get(path)
        if head is None:
            text = f"POST {self._path}{path} HTTP/1.1\r\n{self._headers}Content-Type: application/json\r\n"
            head = self._heads[path] = (text + "Content-Length: ").encode("latin-1")
        return await self._exchange(b"%b%d\r\n\r\n%b" % (head, len(body), body), on_chunk)

    async def get(self, path: str) -> Response:
        """Raises :class:`ConnectionLost` and :class:`AnswerTimeout`."""
        return await self._exchange(
            f"GET {self._path}{path} HTTP/1.1\r\n{self._headers}\r\n".encode("latin-1")
        )

    def drop_connections(self) -> None:
        """End all connections: requests that wait for an answer fail with :class:`ConnectionLost`."""
        for connection in list(self._open):
            connection.close()
        self._idle.clear()

    def expire(self, seconds: float) -> None:
        """End requests that have waited longer for their answer: they fail with :class:`AnswerTimeout`."""
        oldest = time.monotonic() - seconds
        for connection in list(self._open):
            if connection.waiting and connection.used_at < oldest:
                connection.close(AnswerTimeout(f"no answer within {seconds:g} s"))

    async def _exchange(self, data: bytes, on_chunk: Callable[[bytes], None] | None = None) -> Response:
        while True:
            connection = self._reuse()
            kept = connection is not None
            if connection is None:
                connection = await self._connect()
            try:
                response = await connection.exchange(data, on_chunk)
            except ConnectionLost:
                # The server may close a kept connection just when it is used again: no one's failure.
                if kept and not connection.answering and not connection.dropped:
                    continue
                raise
            except BaseException:
                connection.close()
                raise
            if connection.reusable:
                connection.used_at = time.monotonic()
                self._idle.append(connection)
            else:
                connection.close()
            return response

    def _reuse(self) -> _Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.closed:
                continue
            if time.monotonic() - connection.used_at < IDLE_SECONDS:
                return connection
            connection.close()
        return None

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        try:
            _, connection = await asyncio.wait_for(
                loop.create_connection(
                    lambda: _Connection(self._open.discard), self._host, self._port, ssl=self._ssl
                ),
                CONNECT_TIMEOUT,
            )
        except asyncio.TimeoutError as error:
            raise ConnectionLost(f"no connection within {CONNECT_TIMEOUT:g} s") from error
        except OSError as error:
            raise ConnectionLost(str(error)) from error
        self._open.add(connection)
        return connection


class _Connection(asyncio.Protocol):
    """One kept connection. httptools calls the ``on_…`` methods."""

    def __init__(self, forget: Callable[[_Connection], None]) -> None:
        self._forget = forget
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._waiter: asyncio.Future[Response] | None = None
        self._body: list[bytes] = []
        self._on_chunk: Callable[[bytes], None] | None = None
        self._retry_after: str | None = None
        self.closed = False
        self.reusable = False
        self.answering = False
        self.dropped = False
        """Closed from this side, on purpose."""
        self.used_at = 0.0
        """When it was last sent or answered something, by the monotonic clock."""

    async def exchange(self, data: bytes, on_chunk: Callable[[bytes], None] | None) -> Response:
        if self._transport is None or self.closed:
            raise ConnectionLost("it was closed")
        self._body, self._retry_after, self._on_chunk = [], None, on_chunk
        self.reusable = self.answering = False
        self.used_at = time.monotonic()
        self._waiter = asyncio.get_running_loop().create_future()
        self._transport.write(data)
        return await self._waiter

    @property
    def waiting(self) -> bool:
        return self._waiter is not None

    def close(self, error: Exception | None = None) -> None:
        self.closed = self.dropped = True
        self._fail(error or ConnectionLost("it was closed"))
        if self._transport is not None:
            # Not close(): what is still to be sent to a server that hangs would keep it open.
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True
        self._forget(self)
        self._fail(ConnectionLost(str(error) if error else "the server closed it"))

    def data_received(self, data: bytes) -> None:
        self.answering = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.close(ConnectionLost(f"the answer is no HTTP: {error}"))

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"retry-after":
            self._retry_after = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        if self._on_chunk is not None and self._parser.get_status_code() == 200:
            self._on_chunk(body)
        else:
            self._body.append(body)

    def on_message_complete(self) -> None:
        self.reusable = self._parser.should_keep_alive()
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
            waiter.set_result(Response(self._parser.get_status_code(), body, self._retry_after))

    def _fail(self, error: Exception) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_exception(error)
