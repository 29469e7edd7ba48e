"""All processes of a container: what it started, however it was reparented, is found by its environment."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

MARK = "LOOPBACK_CONTAINER"
"""Environment variable of every process of a container, as ``pod uid/container``."""
_KILL_S = 5.0


def of(mark: str) -> list[int]:
    """Pids that carry this mark, zombies left out."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        # Others' processes, and those that end while they are read.
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and _is_marked((entry / "environ").read_bytes(), wanted):
                found.append(int(entry.name))
    return found


def _is_marked(environ: bytes, wanted: bytes) -> bool:
    # A pod's mark, which has no container, is the beginning of its containers' marks.
    return any(variable == wanted or variable.startswith(wanted + b"/") for variable in environ.split(b"\0"))


def kill(mark: str) -> None:
    """SIGKILL to all of them, until there are none; raises AssertionError for what does not die."""
    deadline = time.monotonic() + _KILL_S
    while pids := of(mark):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert time.monotonic() < deadline, f"processes {pids} of {mark} do not die"
        time.sleep(0.01)


def memory(mark_pids: list[int]) -> int:
    """Resident bytes of these processes; shared pages count once per process that maps them."""
    page = os.sysconf("SC_PAGE_SIZE")
    total = 0
    for pid in mark_pids:
        with contextlib.suppress(OSError, IndexError):
            _, resident, shared, *_ = Path(f"/proc/{pid}/statm").read_text().split()
            total += (int(resident) - int(shared)) * page
    return total
