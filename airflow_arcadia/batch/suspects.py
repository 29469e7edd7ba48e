"""Finds the row that kills an engine, by group testing.

When an engine dies, every row in flight may be the reason. They become suspects and are sent again as a
group, beside all other rows. Usually the death had another reason, and all are answered. If the engine dies
again, the suspects that were in flight are divided into smaller groups, tested one group after the other,
until a row is alone: it is then sent to an endpoint that has nothing else to do. A row that goes on to kill
it there is convicted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

PARTS = 8
"""Groups that a group is divided into. A death costs a restart, a group that is answered nearly nothing."""
MAX_DEATHS_ALONE = 3


class PendingRow:
    """A row that is not done.

    :param row: its number.
    """

    __slots__ = ("alone", "attempts", "deaths_alone", "failed_at", "killed", "returns", "row", "suspect")

    def __init__(self, row: int) -> None:
        self.row = row
        self.attempts = 0
        """Failures that were its own."""
        self.returns = 0
        """How often it came back because of its endpoint."""
        self.failed_at: frozenset[object] = frozenset()
        """Endpoints where it failed: another is tried first."""
        self.suspect = False
        self.alone = False
        """To be sent to an endpoint that has nothing else to do."""
        self.deaths_alone = 0
        self.killed = False
        """An engine died with it in flight."""

    def set_alone(self) -> None:
        """Have it sent alone from now on."""
        self.alone = True
        self.returns = 0


class Suspects:
    """Suspects in groups; one group is tested at a time. Pure."""

    def __init__(self) -> None:
        self._groups: deque[list[PendingRow]] = deque()
        self._ready: deque[PendingRow] = deque()
        """Rows of the group under test that may be sent."""
        self._sent: set[PendingRow] = set()

    def __bool__(self) -> bool:
        return bool(self._groups or self._ready or self._sent)

    @property
    def next(self) -> PendingRow | None:
        """The suspect to send next; None while the group under test is in flight, or when there is none."""
        while not self._ready and not self._sent and self._groups:
            self._ready.extend(self._groups.popleft())
        return self._ready[0] if self._ready else None

    def take(self) -> PendingRow:
        """Take :attr:`next`."""
        row = self._ready.popleft()
        self._sent.add(row)
        return row

    def put_back(self, row: PendingRow) -> None:
        """A suspect that was sent comes back untested."""
        self._sent.discard(row)
        self._ready.appendleft(row)

    def clear(self, row: PendingRow) -> None:
        """The row was answered, by whatever answer: it kills no engine."""
        self._sent.discard(row)
        row.suspect = row.alone = False
        row.deaths_alone = 0

    def isolate(self, row: PendingRow) -> None:
        """Have the row sent alone: whatever happens to it then is its own doing."""
        row.suspect = True
        row.set_alone()
        self._groups.append([row])

    def blame(self, rows: Sequence[PendingRow]) -> tuple[list[PendingRow], list[PendingRow]]:
        """An engine died with these rows in flight: who is convicted, and who is not suspected."""
        known = [row for row in rows if row.suspect]
        if not known:
            self._add(rows)
            return [], []
        convicted = []
        divided: list[list[PendingRow]] = []
        together = [row for row in known if not row.alone]
        for row in known:
            self._sent.discard(row)
            if row.alone:
                row.deaths_alone += 1
                if row.deaths_alone >= MAX_DEATHS_ALONE:
                    convicted.append(row)
                else:
                    divided.append([row])
        size = -(-len(together) // PARTS)
        for begin in range(0, len(together), size or 1):
            group = together[begin : begin + size]
            if len(group) == 1:
                group[0].set_alone()
            divided.append(group)
        self._groups.extendleft(reversed(divided))
        return convicted, [row for row in rows if not row.suspect]

    def rows(self) -> set[int]:
        """Numbers of all suspects."""
        return {row.row for group in self._all() for row in group}

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe form."""
        groups = self._all()
        return {
            "groups": [[row.row for row in group] for group in groups],
            "deaths_alone": {
                str(row.row): row.deaths_alone for group in groups for row in group if row.alone
            },
        }

    def load(self, raw: Mapping[str, Any], pending: Iterable[int]) -> None:
        """Take over the suspects of an earlier attempt.

        :param raw: what :meth:`to_dict` gave.
        :param pending: the rows among them that are still to do.
        """
        left = set(pending)
        for numbers in raw["groups"]:
            group = [PendingRow(number) for number in numbers if number in left]
            for row in group:
                row.suspect = True
                deaths = raw["deaths_alone"].get(str(row.row))
                row.alone = deaths is not None or len(group) == 1
                row.deaths_alone = deaths or 0
            if group:
                self._groups.append(group)

    def _add(self, rows: Sequence[PendingRow]) -> None:
        for row in rows:
            row.suspect = True
        if len(rows) == 1:
            rows[0].set_alone()
        if rows:
            self._groups.append(list(rows))

    def _all(self) -> list[list[PendingRow]]:
        under_test = [*self._sent, *self._ready]
        return [*([under_test] if under_test else []), *self._groups]
