"""vLLM platform plug-in: lets vLLM's CPU build be placed on a Ray cluster's *logical* GPUs.

Ray's GPUs may be declared on any machine (``ray start --num-gpus=2``). With this, vLLM's Ray executor asks
for them on a CPU build too, so that a laptop runs the placement groups, actors and code path of production.
Entry point group ``vllm.platform_plugins`` (vLLM's plug-in system); it claims nothing but CPU builds.
"""

from __future__ import annotations

from typing import Any

from airflow_arcadia.runtime.vllm_patches import async_scheduling


def register() -> str | None:
    """Class path of the platform, or None where vLLM is not a CPU build."""
    from vllm.platforms import cpu_platform_plugin

    return f"{__name__}.RayCpuPlatform" if cpu_platform_plugin() else None


def __getattr__(name: str) -> Any:
    # The class needs vLLM's, which must not be imported before vLLM asks for the plug-in.
    if name != "RayCpuPlatform":
        raise AttributeError(name)
    from vllm.platforms.cpu import CpuPlatform

    class RayCpuPlatform(CpuPlatform):  # type: ignore[misc]  # untyped base, only there in the worker
        """vLLM's CPU platform, placed on what Ray calls GPUs."""

        ray_device_key = "GPU"
        ray_noset_device_env_vars = ("RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES",)

        @classmethod
        def check_and_update_config(cls, vllm_config: Any) -> None:
            """Go over the whole configuration, as vLLM asks every platform to."""
            wanted = vllm_config.scheduler_config.async_scheduling
            super().check_and_update_config(vllm_config)
            async_scheduling.enable(vllm_config, wanted)

    globals()[name] = RayCpuPlatform
    return RayCpuPlatform
