"""When a 403 is a missing right, and when it only means that the API server has just started."""

from __future__ import annotations

import time
from collections.abc import Callable

from airflow_arcadia.kubernetes.kinds import Kind

PATIENCE_S = 3.0
"""Seconds that a missing right is asked for again, counted from the first such answer.

An API server answers before it has loaded its RBAC objects. Whoever connected while it started gets 403 for
rights that they have; measured for 40 to 80 ms after its first answer.
"""


class MissingRights:
    """The rights that the API server denies, and since when.

    :param clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: dict[tuple[str, str], float] = {}

    def believed(self, verb: str, kind: Kind) -> bool:
        """Note that this right was denied; whether it has been denied long enough to be really missing."""
        now = self._clock()
        return now - self._since.setdefault((verb, kind.plural), now) >= PATIENCE_S

    def granted(self, verb: str, kind: Kind) -> None:
        """Note that this right was granted."""
        self._since.pop((verb, kind.plural), None)

    def forget(self) -> None:
        """Forget everything: the API server was away, and may have started anew."""
        self._since.clear()
