"""Patch: the engine's processes end with the process that started them, however that one ended.

vLLM's engine core outlives a server that was killed and keeps its ranks on the GPUs. The kernel's
parent-death signal ends the core at once; its ranks follow, those on Ray because their job's driver is gone.
"""

from __future__ import annotations

import ctypes
import functools
import multiprocessing
import os
import signal

from airflow_arcadia.runtime.vllm_patches.gate import NotNeeded, apply

TESTED = ("0.32",)
"""The signal follows the *thread* that started the process: in these releases it is the main thread."""
_PR_SET_PDEATHSIG = 1  # prctl(2)


@functools.cache
def register() -> None:
    """Apply the patch, once in a process."""
    apply("parent_death", TESTED, die_with_parent)


def die_with_parent() -> str:
    """Ask the kernel for SIGKILL when the parent ends; ends this process at once if it has already."""
    parent = multiprocessing.parent_process()
    if parent is None or parent.pid is None:
        raise NotNeeded("no process of vLLM's started this one")
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == parent.pid:
        return f"{multiprocessing.current_process().name} ends with its parent, process {parent.pid}"
    if not parent.is_alive():
        # It ended before the signal was asked for, and will not be sent any more.
        os.kill(os.getpid(), signal.SIGKILL)
    # Started by a fork server: the signal would follow that one.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, 0)
    raise NotNeeded("a fork server started this process")
