"""The command line and environment of vLLM's OpenAI server, from the worker's spec. Pure."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from airflow_arcadia.runtime.allowed_uris import AllowedUris
from airflow_arcadia.runtime.vllm_patches.gate import SERVER_VARIABLE
from airflow_arcadia.worker import PlacedWorker

_NO_DOMAIN = "none.invalid"
"""A name that no host can have (RFC 2606)."""
MIDDLEWARE = "airflow_arcadia.runtime.middleware.ArcadiaMiddleware"


def server_argv(spec: PlacedWorker, python: str = sys.executable) -> list[str]:
    """Words that start the server. No secret is among them: a command line is public on its machine."""
    argv = [python, "-m", "vllm.entrypoints.openai.api_server"]
    argv += ["--model", spec.model, "--served-model-name", spec.served_model_name]
    argv += ["--host", spec.host, "--port", str(spec.port)]
    argv += ["--dtype", spec.dtype]
    argv += ["--max-num-seqs", str(spec.max_num_seqs)]
    argv += ["--max-num-batched-tokens", str(spec.max_num_batched_tokens)]
    if spec.max_model_len is not None:
        argv += ["--max-model-len", str(spec.max_model_len)]
    if spec.gpu_memory_utilization is not None:
        argv += ["--gpu-memory-utilization", str(spec.gpu_memory_utilization)]
    if spec.uses_ray:
        argv += ["--tensor-parallel-size", str(spec.tensor_parallel_size)]
        argv += ["--distributed-executor-backend", "ray"]
    if spec.trust_remote_code:
        argv += ["--trust-remote-code"]
    if spec.lora_modules:
        argv += ["--enable-lora", "--lora-modules", *spec.lora_modules]
    # Without a domain vLLM fetches whatever a request names.
    argv += ["--allowed-media-domains", *(AllowedUris(spec.allowed_uris).http_hosts or [_NO_DOMAIN])]
    # One line a request drowns everything else in a batch's log.
    argv += ["--disable-uvicorn-access-log", "--middleware", MIDDLEWARE]
    return [*argv, *spec.system_args, *spec.extra_args]


def server_env(spec: PlacedWorker, base: Mapping[str, str], node_ip: str | None) -> dict[str, str]:
    """The server's environment: the worker's own, and where its Ray node is.

    :param node_ip: address of the Ray node on this host; vLLM must use the same (``VLLM_HOST_IP``).
    """
    env = dict(base)
    if spec.uses_ray and spec.ray_address:
        env["RAY_ADDRESS"] = spec.ray_address
        if node_ip:
            env.setdefault("VLLM_HOST_IP", node_ip)
    else:
        # One GPU needs no Ray: an address left in the environment must not make vLLM join one.
        env.pop("RAY_ADDRESS", None)
    if spec.uses_ray:
        from airflow_arcadia.runtime.ray_node import auth_environment  # noqa: PLC0415 - loads an HTTP client

        env |= auth_environment(spec, base)
    # vLLM drops an idle connection after 5 s by default, in the middle of a client's next request.
    env.setdefault("VLLM_HTTP_TIMEOUT_KEEP_ALIVE", "75")
    env.setdefault("VLLM_NO_USAGE_STATS", "1")
    # A redirection would lead to a host that is not among the allowed ones.
    env.setdefault("VLLM_MEDIA_URL_ALLOW_REDIRECTS", "0")
    # Our patches of vLLM apply in the processes of a worker's server alone, whatever launched the worker.
    env[SERVER_VARIABLE] = spec.name
    return env
