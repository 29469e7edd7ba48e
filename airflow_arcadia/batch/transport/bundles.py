"""Many rows in one request, and each one's answer as soon as it is there.

``POST /v1/arcadia/bundle`` takes a line a row, ``<url> <JSON>``, and answers with a line a row, ``<number of
the row, from 0> <status> <Retry-After, or -> <JSON>``, in the order in which they are answered. What HTTP
costs is paid once for all of them. ``GET`` tells that a server has it, by its path.

The first half of this module is the codec, pure and shared with the server; :class:`BundlingClient` sends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import orjson

from airflow_arcadia.batch.transport.http_client import (
    MAX_ANSWER_BYTES,
    AnswerTimeout,
    BadAnswer,
    ConnectionLost,
    HttpClient,
    Response,
)

PATH = "/v1/arcadia/bundle"
GATHER_S = 0.003
"""How long a row waits for others to go with. Rows in flight wait hundreds of times longer for the engine."""
MOST_ROWS = 256
MOST_BYTES = 4 * 2**20
"""Size of a bundle: what a server reads before it begins with the first row."""
MAX_ROWS = 4 * MOST_ROWS
"""Rows that a server takes in one request: each becomes a task of its own at once."""


def is_told(answer: Response) -> bool:
    """Whether the answer to ``GET`` is one of a server that takes bundles: some answer 200 to everything."""
    try:
        told = orjson.loads(answer.body) if answer.status == 200 else None
    except orjson.JSONDecodeError:
        return False
    return isinstance(told, dict) and told.get("path") == PATH


def pack(rows: Iterable[tuple[str, bytes]]) -> bytes:
    """The request for rows of URL and JSON in one line each."""
    return b"\n".join([b"%b %b" % (url.encode(), body) for url, body in rows])


def count_rows(data: bytes) -> int:
    """How many rows a request has, before any is read."""
    return data.removesuffix(b"\n").count(b"\n") + 1


def unpack(data: bytes) -> list[tuple[str, bytes]]:
    """The rows of a request. Raises ValueError for a line that is not a row."""
    rows = []
    for number, line in enumerate(data.removesuffix(b"\n").split(b"\n")):
        url, space, body = line.partition(b" ")
        if not space:
            raise ValueError(f"line {number} is not a URL and JSON")
        rows.append((url.decode("latin-1"), body))
    return rows


def pack_answer(number: int, answer: Response) -> bytes:
    """The line of an answered row."""
    after = (answer.retry_after or "-").replace(" ", "_").encode("latin-1", "replace")
    body = answer.body
    if b"\n" in body:
        # JSON has line ends only between its words; what is not JSON is a message for people.
        body = body.replace(b"\n", b" ")
    return b"%d %d %b %b\n" % (number, answer.status, after, body)


class Answers:
    """Reads answers' lines out of chunks that end anywhere.

    :param count: rows of the bundle: numbers from 0 to one less, each once.
    """

    def __init__(self, count: int = MOST_ROWS) -> None:
        self._missing = set(range(count))
        self._rest: list[bytes] = []
        self._rest_bytes = 0

    def feed(self, chunk: bytes) -> Iterator[tuple[int, Response]]:
        """Number and answer of every row whose line is whole now.

        Raises :class:`BadAnswer` for a line that is not an answer to a row that still waits for one.
        """
        head, newline, rest = chunk.rpartition(b"\n")
        if newline:
            lines = b"".join([*self._rest, head]).split(b"\n")
            self._rest, self._rest_bytes = [], 0
            for line in lines:
                yield self._read(line)
        self._rest.append(rest)
        self._rest_bytes += len(rest)
        if self._rest_bytes > MAX_ANSWER_BYTES:
            raise BadAnswer(f"a row's answer has more than {MAX_ANSWER_BYTES} bytes")

    def _read(self, line: bytes) -> tuple[int, Response]:
        try:
            first, status, after, body = line.split(b" ", 3)
            number = int(first)
            self._missing.remove(number)
            retry_after = None if after == b"-" else after.decode("latin-1").replace("_", " ")
            return number, Response(int(status), body, retry_after)
        except (ValueError, KeyError) as error:
            raise BadAnswer(f"the bundle's answer has a wrong line: {line[:100]!r}") from error


@dataclass(eq=False)
class _Row:
    """A row in flight; its waiter gets None when the server does not take bundles."""

    path: str
    body: bytes
    waiter: asyncio.Future[Response | None]
    bundle: _Bundle | None = None


@dataclass(eq=False)
class _Bundle:
    rows: list[_Row] = field(default_factory=list)
    bytes: int = 0
    task: asyncio.Task[None] | None = None

    def leave(self) -> None:
        """One of its rows is not waited for any more: with the last one the request ends."""
        if self.task is not None and all(row.waiter.done() for row in self.rows):
            self.task.cancel()


class BundlingClient:
    """A :class:`~airflow_arcadia.batch.transport.http_client.Client` on top of HTTP.

    It sends rows in bundles to a server that takes them, and one by one to any other. Whether the server
    takes bundles is asked before the first row, and again after a lost connection: another server may have
    come up at its address.
    """

    def __init__(self, http: HttpClient) -> None:
        self._http = http
        self._takes: bool | None = None
        self._asking: asyncio.Task[bool] | None = None
        self._next = _Bundle()
        self._timer: asyncio.TimerHandle | None = None
        self._sent: set[asyncio.Task[None]] = set()

    async def post(self, path: str, body: bytes) -> Response:
        """Send JSON. Raises :class:`ConnectionLost`, :class:`AnswerTimeout` and :class:`BadAnswer`."""
        if self._takes is None:
            await self._ask()
        if not self._takes:
            return await self._http.post(path, body)
        row = _Row(path, body, asyncio.get_running_loop().create_future())
        self._put(row)
        try:
            answer = await row.waiter
        except asyncio.CancelledError:
            if row.bundle is not None:
                row.bundle.leave()
            raise
        return answer if answer is not None else await self._http.post(path, body)

    async def get(self, path: str) -> Response:
        """Raises :class:`ConnectionLost`, :class:`AnswerTimeout` and :class:`BadAnswer`."""
        return await self._http.get(path)

    def drop_connections(self) -> None:
        """End all requests that wait for an answer: they fail with :class:`ConnectionLost`."""
        bundle = self._take()
        _fail(bundle, ConnectionLost("it was closed"))
        self._http.drop_connections()

    def expire(self, seconds: float) -> None:
        """End requests that have waited longer for their answer: they fail with :class:`AnswerTimeout`."""
        self._http.expire(seconds)

    async def close(self) -> None:
        """End all requests and close all connections."""
        self.drop_connections()
        await self._http.close()

    async def _ask(self) -> None:
        if self._asking is None or self._asking.done():
            self._asking = asyncio.get_running_loop().create_task(self._does_take())
        self._takes = await asyncio.shield(self._asking)

    async def _does_take(self) -> bool:
        return is_told(await self._http.get(PATH))

    def _put(self, row: _Row) -> None:
        if self._next.bytes + len(row.body) > MOST_BYTES:
            self._send()
        bundle = row.bundle = self._next
        bundle.rows.append(row)
        bundle.bytes += len(row.body)
        if len(bundle.rows) >= MOST_ROWS:
            self._send()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(GATHER_S, self._send)

    def _take(self) -> _Bundle:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        bundle, self._next = self._next, _Bundle()
        bundle.rows = [row for row in bundle.rows if not row.waiter.done()]
        return bundle

    def _send(self) -> None:
        bundle = self._take()
        if bundle.rows:
            bundle.task = asyncio.get_running_loop().create_task(self._exchange(bundle))
            self._sent.add(bundle.task)
            bundle.task.add_done_callback(self._sent.discard)

    async def _exchange(self, bundle: _Bundle) -> None:
        answers = Answers(len(bundle.rows))

        def take(chunk: bytes) -> None:
            for number, answer in answers.feed(chunk):
                _answer(bundle.rows[number], answer)

        try:
            data = pack((row.path, row.body) for row in bundle.rows)
            for row in bundle.rows:
                # A bundle lives as long as its last row: the others' bytes are not to be kept for that.
                row.body = b""
            whole = await self._http.post(PATH, data, take)
        except (ConnectionLost, AnswerTimeout) as error:
            self._takes = None
            _fail(bundle, error)
        except BadAnswer as error:
            # Whatever it speaks, it is not this protocol.
            self._takes = False
            _fail(bundle, error)
        except Exception as error:  # noqa: BLE001 - whoever waits for a row must hear of it
            _fail(bundle, error)
        else:
            self._finish(bundle, whole)

    def _finish(self, bundle: _Bundle, whole: Response) -> None:
        if whole.status == 200:
            _fail(bundle, ConnectionLost("its answer ended before this row's"))
            return
        refused = whole.status in {404, 405}
        if refused:
            self._takes = None
        for row in bundle.rows:
            _answer(row, None if refused else whole)


def _answer(row: _Row, answer: Response | None) -> None:
    if not row.waiter.done():
        row.waiter.set_result(answer)


def _fail(bundle: _Bundle, error: Exception) -> None:
    """End the rows that have no answer."""
    for row in bundle.rows:
        if not row.waiter.done():
            # Each its own: an error that is raised twice carries both tracebacks.
            row.waiter.set_exception(type(error)(*error.args))
