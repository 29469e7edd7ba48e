"""The provider's ways to run a batch on a worker that is ready."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

from airflow_arcadia.batch import BatchSpec, Endpoint, run_batch
from airflow_arcadia.batch.batch_api import Completed, RemoteBatches, Running, judge
from airflow_arcadia.worker import WorkerHandle
from benchmarks.workloads import SERVED_NAME

POLL_S = 0.05
"""Between two looks at a batch inside the worker: half of it, on average, is measured with it."""


def in_task(rows: Path, handle: WorkerHandle, **options: Any) -> float:
    """Seconds of ``run_in="task"``: files read, segments committed, output merged.

    :param options: more fields of the batch's spec.
    """
    began = time.monotonic()
    spec = BatchSpec(str(rows), str(rows.with_name("task.jsonl")), SERVED_NAME, overwrite=True, **options)
    summary = run_batch(spec, [Endpoint(handle.url)])
    assert summary.failed == 0
    return time.monotonic() - began


def in_worker(rows: Path, handle: WorkerHandle, number: int) -> float:
    """Seconds of ``run_in="worker"``, from its submission to the poll that finds it completed.

    :param number: of the round: each has an output of its own, or the batch would be found done.
    """

    async def run() -> float:
        batches = RemoteBatches(Endpoint(handle.url))
        began = time.monotonic()
        spec = BatchSpec(str(rows), str(rows.with_name(f"worker-{number}.jsonl")), SERVED_NAME)
        name = await batches.submit(spec)
        while isinstance(state := judge(await batches.get(name)), Running):  # noqa: ASYNC110 - another process
            await asyncio.sleep(POLL_S)
        assert isinstance(state, Completed), state
        assert state.summary["failed"] == 0
        return time.monotonic() - began

    return asyncio.run(run())
