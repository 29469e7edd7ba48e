"""Patch: on a CPU the server looks at the model's class itself, instead of in a process of its own.

vLLM starts that process so that its server does not initialize CUDA. It imports all of vLLM once more,
seconds of a worker's start, and keeps what it found in a cache; a pod's cache is empty at each start. Without
a GPU there is no CUDA to initialize.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar

from airflow_arcadia.runtime.vllm_patches.gate import NotNeeded, apply

T = TypeVar("T")
TESTED = ("0.32",)


@functools.cache
def register() -> None:
    """Apply the patch, once in a process."""
    apply("model_info", TESTED, look_here)


def look_here() -> str:
    """Replace what starts the process. Raises :class:`NotNeeded` where vLLM does not compute on the CPU."""
    from vllm.model_executor.models import registry
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        raise NotNeeded("vLLM does not compute on the CPU here")
    if not callable(registry._run_in_subprocess):
        raise TypeError("vLLM's registry has another form")
    registry._run_in_subprocess = call
    return "the server looks at the model's class itself"


def call(look: Callable[[], T]) -> T:
    """What ``_run_in_subprocess`` returns."""
    return look()
