"""Notice while work goes on that the workers doing it are gone."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from functools import partial

from airflow_arcadia.exceptions import WorkerLostError
from airflow_arcadia.launchers.background import Background
from airflow_arcadia.launchers.base import Launcher
from airflow_arcadia.readiness import ProcessObservation, likely_cause
from airflow_arcadia.worker import WorkerHandle

RETRY_S = 5.0
"""Seconds until a watch that failed is made again."""

log = logging.getLogger(__name__)


class WorkerWatch(Background):
    """Watches workers from a thread of its own, as a context manager, by their launchers' own watches.

    :param launchers: by name.
    :param handles: the workers.
    """

    def __init__(self, launchers: Mapping[str, Launcher], handles: Sequence[WorkerHandle]) -> None:
        super().__init__("arcadia-worker-watch", [partial(self._watch, handle) for handle in handles])
        self._launchers = launchers
        self._count = len({handle.name for handle in handles})
        self._lost: dict[str, ProcessObservation] = {}

    @property
    def all_lost(self) -> bool:
        """Whether none of the workers is left."""
        return len(self._lost) == self._count

    def error(self) -> WorkerLostError:
        """What to raise once all are lost."""
        return lost_error(self._lost)

    async def _watch(self, handle: WorkerHandle) -> None:
        while True:
            try:
                if (seen := await self._until_lost(handle)) is not None:
                    self._lost[handle.name] = seen
                    return
            except Exception:  # whatever a launcher's libraries raise: "could not read" is never "absent"
                log.warning("Worker %s cannot be watched; trying again.", handle.name, exc_info=True)
            await asyncio.sleep(RETRY_S)

    async def _until_lost(self, handle: WorkerHandle) -> ProcessObservation | None:
        async with aclosing(self._launchers[handle.launcher].watch(handle)) as changes:
            async for seen in changes:
                if seen.alive is False:
                    return seen
        return None


def gone_error(name: str, seen: ProcessObservation) -> WorkerLostError:
    """The error for a worker that was gone before its batch was asked for: by a cleared task, mostly."""
    cause = likely_cause(seen.log_tail) or seen.exit_reason
    why = f" ({cause})" if cause else ""
    return WorkerLostError(
        f"Worker {name} is not there any more{why}, and the batch is not finished.",
        still_running="Nothing of it runs; the rows committed so far are kept.",
        what_to_do="Clear the run from its reserve task to go on with the rest.",
    )


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
            ["Clear the run from its reserve task to go on with the rest. Its last log lines:", *tail]
        ),
    )
