"""vLLM plug-in that applies the patches in each of vLLM's processes (group ``vllm.general_plugins``)."""

from __future__ import annotations

import multiprocessing
import os

from airflow_arcadia.runtime.vllm_patches import amx, core_wait, model_info, parent_death
from airflow_arcadia.runtime.vllm_patches.gate import in_worker

CORE = "EngineCore"
"""How vLLM names the engine core's process."""


def register() -> None:
    """Called by vLLM in each of its processes, once or more. Outside a worker it does nothing."""
    if not in_worker(os.environ):
        return
    amx.register()
    if multiprocessing.parent_process() is None:
        # The API server, or a rank that Ray started.
        model_info.register()
        return
    parent_death.register()
    if multiprocessing.current_process().name.startswith(CORE):
        core_wait.register()
