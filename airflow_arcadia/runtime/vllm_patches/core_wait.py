"""Where CPUs are few: the engine's core waits for a notice instead of spinning, and comes before its server.

vLLM's core polls for its ranks' results without rest, which answers soonest where it has a CPU to itself.
Where it has not, that takes the CPU from the server in front, and in the core itself Python's lock from the
thread that takes requests in: on 2 CPUs requests now and then reached the engine one at a time, and 1,024
rows took 15 to 70 s instead of 6 s. In a container it also uses up the CPU limit. The notice is vLLM's own:
a rank sends one with every result, for a core that has been idle for a second. Ranks wait as ever: a rank
that sleeps finds others on its CPU when there is work again.

A plug-in of entry point group ``vllm.general_plugins``, which vLLM loads in each of its processes.
Outside a worker of ours it does nothing.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from airflow_arcadia.processes import OWNED_VARIABLE

CORE = "EngineCore"
"""How vLLM names the process."""
FEW_CPUS = 4
NICENESS = 10
LONGEST_WAIT_MS = 1
"""After which the core looks without a notice: of two within about a millisecond ZeroMQ drops the second."""
CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")


def register() -> None:
    """Called by vLLM, in each process once or more."""
    is_core = multiprocessing.current_process().name.startswith(CORE)
    if not is_core or OWNED_VARIABLE not in os.environ or usable_cpus() > FEW_CPUS:
        return
    # Not part of vLLM's interface: where it has gone, the engine waits in vLLM's own way.
    with contextlib.suppress(ImportError, AttributeError):
        from vllm.distributed.device_communicators.shm_broadcast import SpinCondition

        if SpinCondition.wait.__module__ != __name__:
            SpinCondition.wait = at_once(SpinCondition.wait)


def at_once(wait: Callable[[Any, int | None], None]) -> Callable[[Any, int | None], None]:
    """``SpinCondition.wait`` that waits for its notice from the first moment on."""

    def wait_for_notice(condition: Any, timeout_ms: int | None = None) -> None:
        # Seconds of spinning after the last result.
        condition.busy_loop_s = 0.0
        wait(condition, LONGEST_WAIT_MS if timeout_ms is None else min(timeout_ms, LONGEST_WAIT_MS))

    return wait_for_notice


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


def usable_cpus(limit: Path = CPU_LIMIT) -> float:
    """CPUs this process may use: its affinity, and its container's limit (cgroup v2 ``cpu.max``) if lower."""
    cpus = float(len(os.sched_getaffinity(0)))
    with contextlib.suppress(OSError, ValueError):
        quota, period = limit.read_text().split()
        # "max" is no limit, and no number either.
        cpus = min(cpus, int(quota) / int(period))
    return cpus
