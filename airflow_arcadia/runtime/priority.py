"""Keep an engine core that waits by spinning from starving the server in front of it.

vLLM's engine core polls for its ranks' results without rest. Where CPUs are few, the server's own threads then
wait so long for one that requests reach the engine one at a time (measured on 2 CPUs: 1,024 rows in 5 s, or now
and then in 30 to 60 s). A lower priority costs the core nothing while the server has nothing to do. The ranks
keep theirs: each is bound to CPUs of its own, and what it is late with, every row is late with.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import psutil

from airflow_arcadia.runtime.guard import descendants

FEW_CPUS = 4
NICENESS = 10
_CORE = "VLLM::EngineCore"  # how vLLM names the process


def yield_to_server() -> None:
    """Lower the priority of every thread of the engine's core, where CPUs are few."""
    if len(os.sched_getaffinity(0)) > FEW_CPUS:
        return
    for process in descendants():
        with contextlib.suppress(psutil.Error, OSError):
            if process.name().startswith(_CORE):
                lower(process.pid)


def lower(pid: int) -> None:
    """Lower the priority of all threads of a process; it is theirs one by one on Linux."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            if os.getpriority(os.PRIO_PROCESS, int(thread.name)) < NICENESS:
                os.setpriority(os.PRIO_PROCESS, int(thread.name), NICENESS)
