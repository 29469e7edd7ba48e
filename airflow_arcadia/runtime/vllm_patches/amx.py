"""Patch: processes that compute on a CPU ask the kernel for its AMX registers before they use them.

Linux gives AMX's tile registers only to a process that asked for them. vLLM's CPU attention uses them without
asking: it relies on an earlier matrix multiplication whose library asked, and there is none when the first
prompt has a few tokens, like that of a readiness check. The rank then dies of an illegal instruction, and the
engine with it.
"""

from __future__ import annotations

import functools
from pathlib import Path

from airflow_arcadia.runtime.vllm_patches.gate import NotNeeded, apply

TESTED = ("0.32",)


@functools.cache
def register() -> None:
    """Apply the patch, once in a process; on a CPU without AMX nothing is done and nothing logged."""
    if has_amx(Path("/proc/cpuinfo")):
        apply("amx", TESTED, ask_for_amx)


def has_amx(cpuinfo: Path) -> bool:
    """Whether this file, in the form of ``/proc/cpuinfo``, lists a CPU with AMX tiles."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    return any(line.startswith("flags") and "amx_tile" in line.split() for line in lines)


def ask_for_amx() -> str:
    """Ask the kernel. Raises :class:`NotNeeded` where it refuses or vLLM computes elsewhere."""
    import torch
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        raise NotNeeded("vLLM does not compute on the CPU here")
    if not torch.cpu._init_amx():
        raise NotNeeded("the kernel does not give this process the AMX registers")
    return "the kernel gives this process the AMX registers"
