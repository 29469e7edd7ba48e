"""Values that are read in the background and shared: fifty open pages cost what one does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, Generic, TypeVar

T = TypeVar("T")

WAIT_S = 1.5
"""Seconds that a reader waits, over all of its questions, for sources that are slow or away."""
MOST_VALUES = 500
"""Values kept; those that nobody asked for longest are dropped."""


class Reading(Generic[T]):
    """The last value of a source, and what is wrong with the source now.

    :ivar error: None when the value is current.
    """

    def __init__(self, value: T | None, error: str | None) -> None:
        self.value = value
        self.error = error


class Sources:
    """Reads sources in threads, each at most once at a time and at most every ``ttl_s`` seconds.

    :param clock: monotonic seconds.
    """

    def __init__(
        self, ttl_s: float = 1.0, wait_s: float = WAIT_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._ttl_s = ttl_s
        self._wait_s = wait_s
        self._clock = clock
        self._pool = ThreadPoolExecutor(max_workers=16, thread_name_prefix="arcadia-ui")
        self._lock = threading.Lock()
        self._running: dict[str, Future[Any]] = {}
        self._values: dict[str, tuple[float, Any, str | None]] = {}

    def deadline(self) -> float:
        """Until when a reader that begins now may wait, for all of its questions together."""
        return self._clock() + self._wait_s

    def read(
        self, wanted: dict[str, Callable[[], Any]], deadline: float | None = None
    ) -> dict[str, Reading[Any]]:
        """A reading of each: a source that is slow keeps its last value.

        :param deadline: of the reader, see :meth:`deadline`; None for a reader with one question.
        """
        until = self.deadline() if deadline is None else deadline
        started = [self._start(name, ask) for name, ask in wanted.items()]
        left = max(0.0, until - self._clock())
        wait([future for future in started if future is not None], timeout=left)
        return {name: self._reading(name) for name in wanted}

    def kept(self, name: str) -> Any:
        """The last value of a source, without asking for another; None without one."""
        with self._lock:
            found = self._values.get(name)
        return found[1] if found else None

    def forget(self) -> None:
        """Read everything anew at the next call: something was changed."""
        with self._lock:
            self._values = {name: (float("-inf"), *kept[1:]) for name, kept in self._values.items()}

    def _start(self, name: str, ask: Callable[[], Any]) -> Future[Any] | None:
        with self._lock:
            if name in self._running:
                return self._running[name]
            kept = self._values.pop(name, None)
            if kept:
                self._values[name] = kept  # the last asked for is the last in order
                if self._clock() - kept[0] < self._ttl_s:
                    return None
            future = self._pool.submit(self._ask, name, ask)
            self._running[name] = future
            return future

    def _ask(self, name: str, ask: Callable[[], Any]) -> None:
        value, error = None, None
        try:
            value = ask()
        except Exception as problem:  # noqa: BLE001 - a source that fails is shown as such, whatever it raises
            error = str(problem) or type(problem).__name__
        with self._lock:
            if error is not None and name in self._values:
                value = self._values[name][1]
            self._values[name] = (self._clock(), value, error)
            del self._running[name]
            for old in list(self._values)[: max(0, len(self._values) - MOST_VALUES)]:
                del self._values[old]

    def _reading(self, name: str) -> Reading[Any]:
        with self._lock:
            kept = self._values.get(name)
            if name in self._running:
                return Reading(kept[1] if kept else None, "No answer yet.")
            assert kept is not None  # noqa: S101 - a source that does not run has a value or an error
            return Reading(kept[1], kept[2])
