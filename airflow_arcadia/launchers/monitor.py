"""Notice while work goes on that the workers doing it are gone."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Mapping, Sequence
from types import TracebackType

from airflow_arcadia.exceptions import WorkerError
from airflow_arcadia.launchers.base import Launcher
from airflow_arcadia.readiness import ProcessObservation, likely_cause
from airflow_arcadia.worker import WorkerHandle

INTERVAL_S = 1.0

log = logging.getLogger(__name__)


class WorkerLostError(WorkerError):
    """The worker ended while it was needed; only a new launch brings it back."""

    retryable = False


class WorkerWatch:
    """Looks at workers from a thread of its own, as a context manager.

    :param launchers: by name.
    :param handles: the workers.
    :param interval_s: seconds between two looks.
    """

    def __init__(
        self,
        launchers: Mapping[str, Launcher],
        handles: Sequence[WorkerHandle],
        interval_s: float = INTERVAL_S,
    ) -> None:
        self._launchers = launchers
        self._handles = handles
        self._interval_s = interval_s
        self._lost: dict[str, ProcessObservation] = {}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="arcadia-worker-watch", daemon=True)

    def __enter__(self) -> WorkerWatch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()

    @property
    def all_lost(self) -> bool:
        """Whether none of the workers is left."""
        return len(self._lost) == len(self._handles)

    def error(self) -> WorkerLostError:
        """What to raise once all are lost."""
        return lost_error(self._lost)

    def _run(self) -> None:
        while not self._end.wait(self._interval_s):
            for handle in self._handles:
                if handle.name not in self._lost:
                    self._look(handle)

    def _look(self, handle: WorkerHandle) -> None:
        try:
            seen = asyncio.run(self._launchers[handle.launcher].observe(handle))
        except Exception:  # whatever a launcher's libraries raise: could not read is never absent
            log.warning("worker %s cannot be looked at; trying again", handle.name, exc_info=True)
            return
        if seen.alive is False:
            self._lost[handle.name] = seen


def lost_error(lost: Mapping[str, ProcessObservation]) -> WorkerLostError:
    """The error for workers that are gone, by name: each with its cause, and the last one's log."""
    told = []
    for name, seen in lost.items():
        cause = likely_cause(seen.log_tail) or seen.exit_reason
        told.append(f"Worker {name} ended while the batch ran{f': {cause}' if cause else ''}.")
    tail = list(lost.values())[-1].log_tail
    return WorkerLostError(
        " ".join(told),
        still_running="It is no longer running; the rows committed so far are kept.",
        what_to_do="\n".join(
            ["Clear the run from launch_worker to go on with the rest. Its last log lines:", *tail]
        ),
    )
