"""A batch on two workers of which one is drained: what the supervisor does when its pod is deleted."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from airflow_arcadia.batch import BatchSpec, Endpoint, Progress, run_batch_async
from airflow_arcadia.ports import free_port
from tests.batch.reading import answers, text_of, until

ROWS = 1200


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@asynccontextmanager
async def worker() -> AsyncIterator[tuple[str, asyncio.subprocess.Process]]:
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.runtime.worker_process", str(port)), stdout=subprocess.DEVNULL
    )
    try:
        # Before another one looks for a free port.
        await until(lambda: process.returncode is not None or is_listening(port), 60)
        yield f"http://127.0.0.1:{port}", process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@pytest.mark.slow
async def test_no_row_fails_when_one_of_two_workers_is_drained(tmp_path: Path):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    prompts = [f"{'long' if number % 16 == 0 else 'short'} {number}" for number in range(ROWS)]
    source.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    async with worker() as (drained_url, drained), worker() as (other_url, _):
        told = False

        def drain(progress: Progress) -> None:
            nonlocal told
            if progress.done >= ROWS // 8 and not told:
                drained.send_signal(signal.SIGUSR1)
                told = True

        options = {"max_in_flight": 64, "ordering": "input", "retry_base_s": 0.01}
        spec = BatchSpec(str(source), str(output), "tiny", **options)
        summary = await run_batch_async(
            spec,
            [Endpoint(drained_url), Endpoint(other_url)],
            on_progress=drain,
            progress_interval_s=0.1,
        )
        assert (summary.ok, summary.failed) == (ROWS, 0)
        assert await asyncio.wait_for(drained.wait(), 30) in {0, -signal.SIGTERM}
    assert [text_of(row) for row in answers(str(output))] == [prompt.upper() for prompt in prompts]
