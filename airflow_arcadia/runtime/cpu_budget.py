"""How many CPUs the worker may use, and which of its processes comes first where they are few."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

FEW_CPUS = 4
NICENESS = 10
CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")


def give_way(ranks: int, few: float = FEW_CPUS) -> None:
    """Lower the API server's priority, where CPUs are few and each rank still has one to itself.

    The engine's next step waits for its core, a finished answer for nobody: on 2 CPUs a batch took a tenth
    less time. Beside ranks that busy-wait on every CPU the server would hardly run at all.
    """
    if not ranks < usable_cpus() <= few:
        return
    for thread in Path("/proc/self/task").iterdir():
        # Linux sets it for each thread; those that start later inherit it from their creator.
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, int(thread.name), NICENESS)


def usable_cpus(limit: Path = CPU_LIMIT) -> float:
    """CPUs this process may use: its affinity, and its container's limit (cgroup v2 ``cpu.max``) if lower."""
    cpus = float(len(os.sched_getaffinity(0)))
    with contextlib.suppress(OSError, ValueError):
        quota, period = limit.read_text().split()
        # "max" means no limit, and is not a number.
        cpus = min(cpus, int(quota) / int(period))
    return cpus
