"""vLLM platform plug-in: lets vLLM's CPU build be placed on a Ray cluster's *logical* GPUs.

Ray's GPUs may be declared on any machine (``ray start --num-gpus=2``). With this, vLLM's Ray executor asks
for them on a CPU build too, so that a laptop runs the placement groups, actors and code path of production.
Entry point group ``vllm.platform_plugins`` (vLLM's public plug-in system); it applies to CPU builds only, in
each process that uses vLLM in this environment: Ray's ranks do not inherit the server's.
"""

from __future__ import annotations

import os
from typing import Any

from airflow_arcadia.runtime.log import say
from airflow_arcadia.runtime.vllm_patches.gate import SWITCH_VARIABLE, in_worker, refusal, vllm_version

TESTED = ("0.32",)


def register() -> str | None:
    """Class path of the platform, or None where vLLM is not a CPU build or not a tested one."""
    from vllm.platforms import cpu_platform_plugin

    if not cpu_platform_plugin():
        return None
    why_not = refusal(vllm_version(), TESTED, os.environ.get(SWITCH_VARIABLE, "on"))
    if why_not and in_worker(os.environ):
        say(f"vLLM patch cpu_platform is off: {why_not}")
    return None if why_not else f"{__name__}.RayCpuPlatform"


def __getattr__(name: str) -> Any:
    # The class needs vLLM's, which must not be imported before vLLM asks for the plug-in.
    if name != "RayCpuPlatform":
        raise AttributeError(name)
    from vllm.platforms.cpu import CpuPlatform

    class RayCpuPlatform(CpuPlatform):  # type: ignore[misc]  # untyped base, only there in the worker
        """vLLM's CPU platform, placed on what Ray calls GPUs."""

        ray_device_key = "GPU"
        ray_noset_device_env_vars = ("RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES",)

    globals()[name] = RayCpuPlatform
    return RayCpuPlatform
