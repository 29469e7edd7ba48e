"""Which row is sent next, and to which endpoint."""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Iterator, Sequence

from airflow_arcadia.batch.suspects import PendingRow, Suspects
from airflow_arcadia.batch.transport.server import Server

MAX_RETURNS = 30
"""How often a row comes back because of its endpoint before it is sent alone: it may be the row after all."""


class RowQueue:
    """Hands out rows: suspects first, then what failed or came back, then fresh ones. One event loop only.

    :param rows: numbers of the rows to do, in the order to begin them.
    :param servers: the endpoints that will take rows.
    :param suspects: rows that may kill an engine, known from an earlier attempt.
    """

    def __init__(
        self, rows: Iterator[int], servers: Sequence[Server], suspects: Suspects | None = None
    ) -> None:
        self.suspects = Suspects() if suspects is None else suspects
        known = self.suspects.rows()
        self._fresh = (row for row in rows if row not in known)
        self._exhausted = False
        self._delayed: list[tuple[float, int, PendingRow]] = []
        self._returned: deque[PendingRow] = deque()
        self._waiting: dict[Server, deque[asyncio.Future[None]]] = {server: deque() for server in servers}
        self._reserved: Server | None = None
        """The endpoint that a row is to have alone."""
        self._running = 0
        self._number = 0
        self._stopped = False

    async def take(self, server: Server) -> PendingRow | None:
        """The next row for this endpoint, as soon as there is one; None when all rows are done."""
        while not self._stopped:
            pending = self._next(server) if server.has_room else None
            if pending is not None:
                self._running += 1
                server.taken += 1
                if self._waiting[server] and server.has_room:
                    # There may be more: each that finds a row wakes the next.
                    self.wake(server, 1)
                return pending
            if self._is_done:
                self.wake_all()
                return None
            future = asyncio.get_running_loop().create_future()
            self._waiting[server].append(future)
            await future
        return None

    def leave(self, pending: PendingRow, server: Server) -> None:
        """The row is not at the endpoint any more; what becomes of it is told by the calls below."""
        server.taken -= 1
        if pending.alone:
            self._reserved = None
            self.wake_all()
        elif self._reserved is server and not server.taken:
            self.wake(server, 1)

    def finish(self, pending: PendingRow) -> None:
        """The row is done: it is answered, or an error row."""
        self._running -= 1
        if pending.suspect:
            self.suspects.clear(pending)
            self._wake_one_each()
        if not self._running:
            self.wake_all()

    def again(self, pending: PendingRow, delay: float) -> None:
        """The row failed and is to be sent again in ``delay`` seconds."""
        if pending.suspect:
            self.suspects.clear(pending)
        loop = asyncio.get_running_loop()
        self._number += 1
        heapq.heappush(self._delayed, (loop.time() + delay, self._number, pending))
        loop.call_later(delay + 0.001, self._wake_one_each)
        self._running -= 1

    def give_back(self, pending: PendingRow, weight: int = 1) -> None:
        """The row was not answered because of its endpoint: it is to be sent again at once.

        :param weight: how much that counts towards :data:`MAX_RETURNS`.
        """
        self._running -= 1
        pending.returns += weight
        if pending.suspect:
            self.suspects.put_back(pending)
        elif pending.returns >= MAX_RETURNS:
            self.suspects.isolate(pending)
        else:
            self._returned.append(pending)
        self._wake_one_each()

    def blame(self, rows: Sequence[PendingRow]) -> list[PendingRow]:
        """An engine died with these rows in flight. Returns the convicted ones, still to be finished."""
        convicted, innocent = self.suspects.blame(rows)
        for pending in innocent:
            self.give_back(pending)
        self._running -= len(rows) - len(innocent) - len(convicted)
        self.wake_all()
        return convicted

    def stop(self) -> None:
        """Hand out nothing more."""
        self._stopped = True
        self.wake_all()

    def wake(self, server: Server, count: int) -> None:
        """Let so many waiters of the endpoint look again: it can take rows."""
        _wake(self._waiting[server], count)

    def wake_all(self) -> None:
        """Let every waiter look again."""
        for waiting in self._waiting.values():
            _wake(waiting, len(waiting))

    @property
    def _is_done(self) -> bool:
        return (
            self._exhausted
            and not self._running
            and not self._delayed
            and not self._returned
            and not self.suspects
        )

    def _next(self, server: Server) -> PendingRow | None:
        suspect = self.suspects.next
        if suspect is not None:
            if not suspect.alone:
                if self._suits(suspect, server):
                    return self.suspects.take()
            elif self._reserve(suspect, server) and not server.taken:
                return self.suspects.take()
        if self._reserved is server:
            return None
        return self._next_delayed(server) or self._next_returned(server) or self._next_fresh()

    def _reserve(self, pending: PendingRow, server: Server) -> bool:
        """Whether this is the endpoint that the row is to have alone."""
        if (self._reserved is None or not self._reserved.up) and self._suits(pending, server):
            self._reserved = server
        return self._reserved is server

    def _next_delayed(self, server: Server) -> PendingRow | None:
        # Failed rows before fresh ones: they have waited longest, and are not to be the batch's tail.
        now = asyncio.get_running_loop().time() if self._delayed else 0.0
        skipped = []
        found = None
        while self._delayed and self._delayed[0][0] <= now:
            entry = heapq.heappop(self._delayed)
            if self._suits(entry[2], server):
                found = entry[2]
                break
            skipped.append(entry)
        for entry in skipped:
            heapq.heappush(self._delayed, entry)
        return found

    def _next_returned(self, server: Server) -> PendingRow | None:
        for number, pending in enumerate(self._returned):
            if self._suits(pending, server):
                del self._returned[number]
                return pending
        return None

    def _next_fresh(self) -> PendingRow | None:
        row = None if self._exhausted else next(self._fresh, None)
        if row is None:
            self._exhausted = True
            return None
        return PendingRow(row)

    def _suits(self, pending: PendingRow, server: Server) -> bool:
        """Whether the row may go there: not where it failed, while it has not failed everywhere."""
        if server not in pending.failed_at:
            return True
        return not any(other.up and other not in pending.failed_at for other in self._waiting)

    def _wake_one_each(self) -> None:
        for server, waiting in self._waiting.items():
            if server.has_room:
                _wake(waiting, 1)


def _wake(waiting: deque[asyncio.Future[None]], most: int) -> None:
    woken = 0
    while waiting and woken < most:
        future = waiting.popleft()
        if not future.done():
            future.set_result(None)
            woken += 1
