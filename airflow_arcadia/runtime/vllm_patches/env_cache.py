"""Patch: the API server reads vLLM's environment variables once, as its engine does, not for every token."""

from __future__ import annotations

from airflow_arcadia.runtime.vllm_patches.gate import apply

TESTED = ("0.32",)


def register() -> None:
    """Apply the patch; call it once the server has started and nothing changes its environment any more."""
    apply("env_cache", TESTED, cache)


def cache() -> str:
    """Let vLLM cache its environment variables."""
    from vllm.envs import enable_envs_cache

    enable_envs_cache()
    return "the API server reads vLLM's environment variables once"
