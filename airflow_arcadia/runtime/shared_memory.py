"""The /dev/shm files an engine leaves behind: recorded while it lives, removed after it.

vLLM's ranks communicate through POSIX shared memory (``psm_*`` message queues, ``*cpushm_*`` of the CPU
build) and a killed engine unlinks none of it. The ranks are Ray's processes, not ours; they are known by
sharing a file with one of ours.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import psutil

from airflow_arcadia.processes import SHM, SHM_WAIT_S, remove_unmapped_shm, shm_files

ENGINE_FILE = re.compile(re.escape(SHM) + r"(psm_|.*cpushm_|sem\.mp-)")
"""Message queues, the CPU build's tensors, and multiprocessing's semaphores."""
LOOK_S = 2.0
_TRACKER = "multiprocessing.resource_tracker"
_TRACKER_WAIT_S = 2.0


def kill_all(processes: Iterable[psutil.Process]) -> None:
    """SIGKILL to each of an engine's processes, Python's resource trackers last.

    A tracker removes the message queues and semaphores that its processes left, once the last one is gone.
    """
    trackers = []
    for process in processes:
        if _is_tracker(process):
            trackers.append(process)
        else:
            _kill(process)
    _, slow = psutil.wait_procs(trackers, timeout=_TRACKER_WAIT_S)
    for process in slow:
        _kill(process)


class EngineSharedMemory:
    """Keeps the list, also in a file, so that others can remove the files after a SIGKILL.

    :param record: file to keep the list in, one path a line; None keeps it in memory.
    :param look_s: seconds between two looks while /dev/shm does not change.
    """

    def __init__(self, record: Path | None, *, look_s: float = LOOK_S) -> None:
        self._record = record
        self._look_s = look_s
        self._next = 0.0
        self._names: frozenset[str] = frozenset()
        # What a worker of the same name left when it was killed is this one's to remove.
        self._seen = set(record.read_text().splitlines()) if record and record.exists() else set()

    def due(self) -> bool:
        """Whether it is time for a look: engine files have appeared, or the last look was a while ago.

        An engine maps its files as it makes them. A look at the next poll sees them before a kill is likely.
        """
        names = frozenset(filter(ENGINE_FILE.match, (f"{SHM}{name}" for name in os.listdir(SHM))))
        if names <= self._names and time.monotonic() < self._next:
            return False
        self._names = names
        self._next = time.monotonic() + self._look_s
        return True

    def look(self, processes: Iterable[psutil.Process]) -> None:
        """Record what these processes of the engine map now, and what their ranks on Ray map."""
        own = _engine_files(shm_files(process.pid for process in processes))
        if own <= self._seen and self._seen:
            return
        found = own | self._shared_with(own)
        if found - self._seen:
            self._seen |= found
            if self._record is not None:
                self._record.write_text("".join(f"{path}\n" for path in sorted(self._seen)))

    def remove(self) -> list[str]:
        """Remove all that was recorded once nothing maps it; returns what is left."""
        left = remove_unmapped_shm(self._seen, wait_s=SHM_WAIT_S)
        if not left and self._record is not None:
            self._record.unlink(missing_ok=True)
        return left

    @staticmethod
    def _shared_with(own: set[str]) -> set[str]:
        found: set[str] = set()
        for pid in psutil.pids():
            files = _engine_files(shm_files([pid]))
            if files & own:
                found |= files
        return found


def _is_tracker(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return any(_TRACKER in word for word in process.cmdline())
    return False


def _kill(process: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess):
        process.kill()


def _engine_files(files: set[str]) -> set[str]:
    return {path for path in files if ENGINE_FILE.match(path)}
