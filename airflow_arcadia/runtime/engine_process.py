"""Where CPUs are few: the engine's core waits by sleeping instead of spinning, and comes before its server.

vLLM's core polls for its ranks' results without rest, which answers soonest where it has a CPU to itself.
Where it has not, that takes the CPU from the server in front, and in the core itself Python's lock from the
thread that takes requests in: on 2 CPUs requests now and then reached the engine one at a time, and 1,024
rows took 15 to 70 s instead of 6 s. In a container it also uses up the CPU limit. Ranks wait as ever: a rank
that sleeps finds others on its CPU when there is work again.

A plug-in of entry point group ``vllm.general_plugins``, which vLLM loads in each of its processes.
Outside a worker of ours it does nothing.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
from pathlib import Path

from airflow_arcadia.processes import OWNED_VARIABLE

CORE = "EngineCore"
"""How vLLM names the process."""
FEW_CPUS = 4
NICENESS = 10
POLL_S = 50e-6
"""Seconds between two looks. Linux adds about as much again; a step of the engine takes 100 times longer."""
CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")


def register() -> None:
    """Called by vLLM, in each process once or more."""
    is_core = multiprocessing.current_process().name.startswith(CORE)
    if not is_core or OWNED_VARIABLE not in os.environ or usable_cpus() > FEW_CPUS:
        return
    # Not part of vLLM's interface: where it has gone, the engine waits in vLLM's own way.
    with contextlib.suppress(ImportError, AttributeError):
        from vllm.distributed.device_communicators import shm_broadcast

        if callable(shm_broadcast.sched_yield):
            shm_broadcast.sched_yield = pause


def give_way(ranks: int) -> None:
    """Lower the priority of the server in front, where CPUs are few and each rank still has one to itself.

    The engine's next step waits for its core, a finished answer for nobody: on 2 CPUs a batch took a tenth
    less time. Beside ranks that spin on every CPU the server would hardly run at all.
    """
    if not ranks < usable_cpus() <= FEW_CPUS:
        return
    for thread in Path("/proc/self/task").iterdir():
        # On Linux it is one by one for threads; those that start later have their maker's.
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, int(thread.name), NICENESS)


def pause() -> None:
    """Let others have the CPU and Python's lock for a moment."""
    time.sleep(POLL_S)


def usable_cpus(limit: Path = CPU_LIMIT) -> float:
    """CPUs this process may use: its affinity, and its container's limit (cgroup v2 ``cpu.max``) if lower."""
    cpus = float(len(os.sched_getaffinity(0)))
    with contextlib.suppress(OSError, ValueError):
        quota, period = limit.read_text().split()
        # "max" is no limit, and no number either.
        cpus = min(cpus, int(quota) / int(period))
    return cpus
