"""A worker as a DAG launches it, on this machine."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from airflow_arcadia.launchers.process import ProcessLauncher
from airflow_arcadia.launchers.teardown import teardown
from airflow_arcadia.launchers.wait import Wait, wait_until_decided
from airflow_arcadia.lease import Identity
from airflow_arcadia.lease_store import LeaseStore
from airflow_arcadia.readiness import Failed
from airflow_arcadia.worker import WorkerHandle, WorkerSpec
from benchmarks.results import WORKER_PYTHON
from benchmarks.workloads import SERVED_NAME

MAX_NUM_SEQS, MAX_NUM_BATCHED_TOKENS, MAX_MODEL_LEN = 256, 8192, 1024
KV_CACHE = 512 * 2**20
"""Bytes."""
POLL_S = 0.5
STARTUP_TIMEOUT_S = 600.0


def engine_flags(kv_cache: int = KV_CACHE) -> list[str]:
    """The limits that every way shares, as flags of vLLM's server."""
    flags = ["--max-num-seqs", MAX_NUM_SEQS, "--max-num-batched-tokens", MAX_NUM_BATCHED_TOKENS]
    flags += ["--max-model-len", MAX_MODEL_LEN, "--kv-cache-memory-bytes", kv_cache, "--enforce-eager"]
    return [str(flag) for flag in flags]


@contextlib.contextmanager
def worker(folder: Path, model: Path, kv_cache: int = KV_CACHE) -> Iterator[WorkerHandle]:
    """A worker that is ready, with its lease in ``folder``; torn down in the end."""
    store = LeaseStore(folder / "state")
    lease = store.reserve(
        Identity("benchmarks", f"{os.getpid()}-{time.monotonic_ns()}", "worker"), time.time()
    )
    spec = WorkerSpec(
        name=lease.name,
        model=str(model),
        served_model_name=SERVED_NAME,
        max_model_len=MAX_MODEL_LEN,
        max_num_seqs=MAX_NUM_SEQS,
        max_num_batched_tokens=MAX_NUM_BATCHED_TOKENS,
        extra_args=("--enforce-eager", "--kv-cache-memory-bytes", str(kv_cache)),
        allowed_uris=(str(folder),),
    )
    launcher = ProcessLauncher(store, WORKER_PYTHON)
    try:
        handle = launcher.launch(spec, lease, ray=None)
        wait_until_ready(launcher, handle)
        yield handle
    finally:
        assert teardown(store, lease.name, {launcher.name: launcher}, grace_s=30) == []


def wait_until_ready(launcher: ProcessLauncher, handle: WorkerHandle) -> None:
    """Wait as ``model_ready`` does, but look more often. Raises RuntimeError when it never will be ready."""

    async def keep_renewed() -> None:
        """Renew nothing: the benchmark's lease is long enough."""
        await asyncio.Event().wait()

    async def no_key() -> None:
        """The benchmark's workers ask for none."""

    wait = Wait(
        launcher=launcher,
        handle=handle,
        api_key=no_key,
        started_at=time.time(),
        startup_timeout_s=STARTUP_TIMEOUT_S,
        poll_interval_s=POLL_S,
        keep_renewed=keep_renewed,
        say=lambda _: None,
    )
    outcome = asyncio.run(wait_until_decided(wait))
    if isinstance(outcome, Failed):
        raise RuntimeError(str(outcome))  # noqa: TRY004 - an outcome, not an argument
