"""Keep an engine core that waits by spinning from starving its own server, and itself, where CPUs are few.

vLLM's engine core polls for its ranks' results in its main thread, and hands its CPU and Python's lock on with
every poll. Two things go wrong on few CPUs, both measured on 2: the server in front waits long for a CPU; and the
core's own thread that takes requests in, if it waits on a rank's CPU, comes too late for the lock each time, so
that requests reach the engine one at a time (1,024 rows in 5 s, or now and then in 20 to 60 s). So the thread
that spins gets a lower priority, which costs nothing while others have nothing to do, and the core keeps off the
CPUs that ranks are bound to, so that its threads are next in line where it spins.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

import psutil

from airflow_arcadia.runtime.guard import descendants

FEW_CPUS = 4
NICENESS = 10
_CORE, _RANK = "VLLM::EngineCore", "VLLM::Worker"  # how vLLM names the processes


def yield_to_server() -> None:
    """Arrange the engine's core and ranks, where CPUs are few. Right when called again."""
    allowed = os.sched_getaffinity(0)
    if len(allowed) > FEW_CPUS:
        return
    named = [(name, process.pid) for process in descendants() if (name := _name(process))]
    ranks = [pid for name, pid in named if name.startswith(_RANK)]
    cores = [pid for name, pid in named if name.startswith(_CORE)]
    free = free_cpus(allowed, [affinity for pid in ranks if (affinity := _affinity(pid))])
    for pid in cores:
        if os.environ.get("VLLM_LAB_LOW") == "all":
            for thread in Path(f"/proc/{pid}/task").iterdir():
                lower(int(thread.name))
        else:
            lower(pid)
        if free and os.environ.get("VLLM_LAB_PIN", "core") != "none":
            keep_on(pid, free)
    if os.environ.get("VLLM_LAB_PIN") == "all" and free:
        for process in descendants():
            with contextlib.suppress(psutil.Error, OSError):
                if "openai.api_server" in " ".join(process.cmdline()):
                    keep_on(process.pid, free)


def free_cpus(allowed: set[int], ranks: Iterable[set[int]]) -> set[int]:
    """CPUs that no rank is bound to; none when a rank may run everywhere."""
    return allowed.difference(*ranks)


def lower(pid: int) -> None:
    """Lower the priority of a process's main thread; it is one by one for threads on Linux."""
    with contextlib.suppress(OSError):
        if os.getpriority(os.PRIO_PROCESS, pid) < NICENESS:
            os.setpriority(os.PRIO_PROCESS, pid, NICENESS)


def keep_on(pid: int, cpus: set[int]) -> None:
    """Let every thread of a process run on these CPUs alone."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            if os.sched_getaffinity(int(thread.name)) != cpus:
                os.sched_setaffinity(int(thread.name), cpus)


def _name(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return process.name()
    return ""


def _affinity(pid: int) -> set[int]:
    with contextlib.suppress(OSError):
        return os.sched_getaffinity(pid)
    return set()
