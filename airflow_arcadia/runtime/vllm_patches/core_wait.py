"""Patch: where CPUs are few, the engine core waits for a notification instead of busy-waiting.

vLLM's core polls for its ranks' results without rest, which answers soonest where it has a CPU to itself.
Where it has not, that takes the CPU from the API server, and in the core itself Python's lock from the
thread that receives requests: on 2 CPUs requests now and then reached the engine one at a time, and 1,024
rows took 15 to 70 s instead of 6 s. In a container it also uses up the CPU limit. The notification is vLLM's
own: a rank sends one with every result, for a core that has been idle for a second. Ranks wait as ever: a
rank that sleeps finds others on its CPU when there is work again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from airflow_arcadia.runtime.cpu_budget import FEW_CPUS, usable_cpus
from airflow_arcadia.runtime.vllm_patches.gate import NotNeeded, apply

TESTED = ("0.32",)
LONGEST_WAIT_MS = 1
"""After which the core looks without a notification: of two within a millisecond ZeroMQ drops the second."""


@functools.cache
def register() -> None:
    """Apply the patch, once in a process."""
    apply("core_wait", TESTED, wait_for_notifications)


def wait_for_notifications(few: float = FEW_CPUS) -> str:
    """Replace ``SpinCondition.wait``. Raises :class:`NotNeeded` where CPUs are plenty."""
    cpus = usable_cpus()
    if cpus > few:
        raise NotNeeded(f"{cpus:g} CPUs are enough for a core that busy-waits")
    from vllm.distributed.device_communicators.shm_broadcast import SpinCondition

    SpinCondition.wait = without_spinning(SpinCondition.wait)
    return f"on {cpus:g} CPUs the core waits for notifications"


def without_spinning(wait: Callable[[Any, int | None], None]) -> Callable[[Any, int | None], None]:
    """``SpinCondition.wait`` that waits for its notification from the first moment on."""

    def wait_for_notification(condition: Any, timeout_ms: int | None = None) -> None:
        # Seconds of busy-waiting after the last result.
        condition.busy_loop_s = 0.0
        wait(condition, LONGEST_WAIT_MS if timeout_ms is None else min(timeout_ms, LONGEST_WAIT_MS))

    return wait_for_notification
