"""A client that sends rows in bundles to a server that takes them, and one by one to any other."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from airflow_arcadia.batch.transport.bundles import PATH, Answers, is_told, pack
from airflow_arcadia.batch.transport.http_client import AnswerTimeout, ConnectionLost, HttpClient, Response

GATHER_S = 0.003
"""How long a row waits for others to go with. Rows in flight wait hundreds of times longer for the engine."""
MOST_ROWS = 256
MOST_BYTES = 4 * 2**20
"""Size of a bundle: what a server reads before it begins with the first row."""


@dataclass(eq=False)
class _Row:
    """A row on its way; its waiter gets None when the server does not take bundles."""

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
        """One of its rows is not waited for any more: with the last one it ends."""
        if self.task is not None and all(row.waiter.done() for row in self.rows):
            self.task.cancel()


class BundlingClient:
    """A :class:`~airflow_arcadia.batch.transport.http_client.Client` on top of HTTP.

    Whether the server takes bundles is asked before the first row, and again after a lost connection: another
    server may have come up at its address.
    """

    def __init__(self, http: HttpClient) -> None:
        self._http = http
        self._takes: bool | None = None
        self._asking: asyncio.Task[bool] | None = None
        self._next = _Bundle()
        self._timer: asyncio.TimerHandle | None = None
        self._sent: set[asyncio.Task[None]] = set()

    async def post(self, path: str, body: bytes) -> Response:
        """Send JSON. Raises :class:`ConnectionLost` and :class:`AnswerTimeout`."""
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
        """Raises :class:`ConnectionLost` and :class:`AnswerTimeout`."""
        return await self._http.get(path)

    def drop_connections(self) -> None:
        """End all requests that wait for an answer: they fail with :class:`ConnectionLost`."""
        bundle = self._take()
        _fail(bundle, ConnectionLost("it was closed"))
        self._http.drop_connections()

    def expire(self, seconds: float) -> None:
        """End requests that have waited longer for their answer: they fail with :class:`AnswerTimeout`."""
        self._http.expire(seconds)

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
        answers = Answers()

        def take(chunk: bytes) -> None:
            for number, answer in answers.feed(chunk):
                _answer(bundle.rows[number], answer)

        try:
            whole = await self._http.post(PATH, pack((row.path, row.body) for row in bundle.rows), take)
        except (ConnectionLost, AnswerTimeout) as error:
            self._takes = None
            _fail(bundle, error)
            return
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
