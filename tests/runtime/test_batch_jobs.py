"""The worker's own batches, without a server around them."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from airflow_arcadia.batch import Endpoint
from airflow_arcadia.batch.transport.server import connect_http
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


def submit(jobs: BatchJobs, tmp_path: Path) -> Batch:
    body = {"input_file_id": str(tmp_path / "in.jsonl"), "output": str(tmp_path / "out.jsonl")}
    return jobs.create(body, trusted=True)


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
