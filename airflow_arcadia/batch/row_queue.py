"""Who takes which row next: fresh rows in their order, failed ones when their pause is over."""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Iterator

from airflow_arcadia.batch.transport.server import Server


class Work:
    """A row on its way."""

    __slots__ = ("attempts", "losses", "row")

    def __init__(self, row: int) -> None:
        self.row = row
        self.attempts = 0
        self.losses = 0


class WorkQueue:
    """Hands rows to lanes. One event loop only.

    :param rows: numbers of the rows to do, in the order to begin them.
    """

    def __init__(self, rows: Iterator[int]) -> None:
        self._fresh = rows
        self._exhausted = False
        self._delayed: list[tuple[float, int, Work]] = []
        self._waiting: dict[Server, deque[asyncio.Future[None]]] = {}
        self._running = 0
        self._number = 0
        self._stopped = False

    async def take(self, server: Server) -> Work | None:
        """The next row for a lane of this server, as soon as there is one; None when all are done."""
        while not self._stopped:
            work = self._next() if server.room > 0 else None
            if work is not None:
                self._running += 1
                return work
            if self._exhausted and not self._running and not self._delayed:
                self.wake_all()
                return None
            future = asyncio.get_running_loop().create_future()
            self._waiting.setdefault(server, deque()).append(future)
            await future
        return None

    def finish(self) -> None:
        """A row that was taken needs no more work."""
        self._running -= 1
        if not self._running:
            self.wake_all()

    def again(self, work: Work, delay: float) -> None:
        """A row that was taken is to be tried again in ``delay`` seconds."""
        loop = asyncio.get_running_loop()
        self._number += 1
        heapq.heappush(self._delayed, (loop.time() + delay, self._number, work))
        loop.call_later(delay + 0.001, self._wake_one)
        self._running -= 1

    def stop(self) -> None:
        """Hand out nothing more."""
        self._stopped = True
        self.wake_all()

    def wake(self, server: Server, lanes: int) -> None:
        """Let so many waiting lanes of the server look again: it has room."""
        _wake(self._waiting.get(server, deque()), lanes)

    def wake_all(self) -> None:
        """Let every waiting lane look again."""
        for waiting in self._waiting.values():
            _wake(waiting, len(waiting))

    def _next(self) -> Work | None:
        # Failed rows first: they have waited longest, and are not to be a tail of their own.
        if self._delayed and self._delayed[0][0] <= asyncio.get_running_loop().time():
            return heapq.heappop(self._delayed)[2]
        row = None if self._exhausted else next(self._fresh, None)
        if row is None:
            self._exhausted = True
            return None
        return Work(row)

    def _wake_one(self) -> None:
        # The server with most lanes free has least to do.
        for server in sorted(self._waiting, key=lambda server: -len(self._waiting[server])):
            if server.room > 0 and _wake(self._waiting[server], 1):
                return


def _wake(waiting: deque[asyncio.Future[None]], most: int) -> int:
    """Wake so many, and say how many."""
    woken = 0
    while waiting and woken < most:
        future = waiting.popleft()
        if not future.done():
            future.set_result(None)
            woken += 1
    return woken
