"""The worker's own batches, without a server around them."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from airflow_arcadia.batch import Endpoint
from airflow_arcadia.batch.transport.server import connect_http
from airflow_arcadia.exceptions import BatchError
from airflow_arcadia.runtime import batch_jobs
from airflow_arcadia.runtime.allowed_uris import AllowedUris
from airflow_arcadia.runtime.batch_jobs import BatchJobs
from airflow_arcadia.runtime.batch_record import Batch
from airflow_arcadia.runtime.files.store import FileStore, Limits
from tests.batch.fake_engine import FakeEngine, serving
from tests.batch.reading import until


@pytest.fixture
async def engine() -> AsyncIterator[FakeEngine]:
    async with serving() as engine:
        yield engine


@pytest.fixture
def jobs(engine: FakeEngine, tmp_path: Path) -> BatchJobs:
    (tmp_path / "in.jsonl").write_text('{"prompt": "p"}\n')
    (tmp_path / "lease").mkdir()
    return BatchJobs(
        Endpoint(engine.url),
        "tiny",
        tmp_path / "lease",
        connect=connect_http,
        allowed=AllowedUris(()),
        store=FileStore(None, Limits(2**20, 2**20, 3600.0)),
    )


def submit(jobs: BatchJobs, tmp_path: Path, submission: str | None = None) -> Batch:
    body = {"input_file_id": str(tmp_path / "in.jsonl"), "output": str(tmp_path / "out.jsonl")}
    return jobs.create(body, trusted=True, submission=submission)


async def test_a_batch_that_is_submitted_before_the_worker_is_ready_is_not_started_twice(
    jobs: BatchJobs, engine: FakeEngine, tmp_path: Path
):
    batch = submit(jobs, tmp_path)
    jobs.resume()
    await until(lambda: batch.has_ended and not jobs.running)
    assert (batch.status, batch.error) == ("completed", None)
    assert engine.seen.total() == 1


async def test_a_batch_whose_end_cannot_be_recorded_says_so_in_the_workers_log(
    jobs: BatchJobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    write = Batch.write

    def full(batch: Batch, folder: Path) -> None:
        if batch.has_ended:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(batch, folder)

    monkeypatch.setattr(Batch, "write", full)
    batch = submit(jobs, tmp_path)
    await until(lambda: batch.has_ended and not jobs.running)
    (said,) = [line for line in "".join(capsys.readouterr()).splitlines() if "recorded" in line]
    assert f"{batch.id} completed, which could not be recorded" in said
    assert "No space left on device" in said


async def test_who_submitted_a_batch_before_does_not_cancel_it_for_who_did_last(
    jobs: BatchJobs, engine: FakeEngine, tmp_path: Path
):
    """Airflow ends the waiting of a cleared task after its next attempt has begun."""
    engine.delay = 0.2
    batch = submit(jobs, tmp_path, "first")
    assert submit(jobs, tmp_path, "second") is batch
    jobs.cancel(batch, "first")
    await until(lambda: batch.has_ended and not jobs.running)
    assert batch.status == "completed"


@pytest.mark.parametrize("said", ["second", None])
async def test_who_submitted_a_batch_last_and_who_names_nobody_cancel_it(
    jobs: BatchJobs, engine: FakeEngine, tmp_path: Path, said: str | None
):
    engine.delay = 0.2
    submit(jobs, tmp_path, "first")
    batch = submit(jobs, tmp_path, "second")
    jobs.cancel(batch, said)
    await until(lambda: batch.has_ended and not jobs.running)
    assert batch.status == "cancelled"


@pytest.mark.parametrize("noticed", [False, True])
async def test_a_batch_that_is_submitted_again_while_it_is_being_cancelled_goes_on(
    jobs: BatchJobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noticed: bool
):
    stopping, again = asyncio.Event(), asyncio.Event()
    runs, runner = [], batch_jobs.run_batch_async

    async def run(*arguments: Any, should_stop: Callable[[], bool], **more: Any) -> Any:
        """Runs the batch; before that, a first run that has noticed that it is to stop ends."""
        runs.append(noticed)
        if runs == [True]:
            await until(should_stop)
            stopping.set()
            await again.wait()
            raise BatchError("It was stopped.", what_to_do="Start it again.")
        await again.wait()
        return await runner(*arguments, should_stop=should_stop, **more)

    monkeypatch.setattr(batch_jobs, "run_batch_async", run)
    batch = submit(jobs, tmp_path, "first")
    await until(lambda: bool(runs))
    jobs.cancel(batch, "first")
    if noticed:
        await stopping.wait()
    submit(jobs, tmp_path, "second")
    again.set()
    await until(lambda: batch.has_ended and not jobs.running)
    assert (batch.status, batch.cancelling_at, len(runs)) == ("completed", None, 1 + noticed)


async def test_a_batch_that_is_submitted_again_as_it_ends_keeps_its_new_task(
    jobs: BatchJobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The earlier task is done a moment after the batch has ended."""
    end, go_on = jobs._end, asyncio.Event()
    ended: list[Batch] = []

    async def end_and_submit(batch: Batch, status: str, error: str | None = None) -> None:
        if ended:
            await go_on.wait()
        await end(batch, status, error)
        ended.append(batch)
        if len(ended) == 1:
            submit(jobs, tmp_path, "second")

    monkeypatch.setattr(jobs, "_end", end_and_submit)
    first = submit(jobs, tmp_path, "first")
    (task,) = jobs._tasks.values()
    await task
    await asyncio.sleep(0)  # for what is called when the task is done
    assert jobs.running, "what was submitted again"
    go_on.set()
    await until(lambda: not jobs.running)
    assert [(batch.id, batch.status) for batch in ended] == [(first.id, "completed")] * 2
