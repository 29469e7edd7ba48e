"""The worker's own batches, without a server around them."""

from __future__ import annotations

from pathlib import Path

from airflow_arcadia.batch import Endpoint
from airflow_arcadia.batch.transport.server import connect_http
from airflow_arcadia.runtime.allowed_uris import AllowedUris
from airflow_arcadia.runtime.batch_jobs import BatchJobs
from airflow_arcadia.runtime.files.store import FileStore, Limits
from tests.batch.fake_engine import serving
from tests.batch.reading import until


async def test_a_batch_that_is_submitted_before_the_worker_is_ready_is_not_started_twice(tmp_path: Path):
    (tmp_path / "in.jsonl").write_text('{"prompt": "p"}\n')
    async with serving() as engine:
        jobs = BatchJobs(
            Endpoint(engine.url),
            "tiny",
            tmp_path / "lease",
            connect=connect_http,
            allowed=AllowedUris(()),
            store=FileStore(None, Limits(2**20, 2**20, 3600.0)),
        )
        (tmp_path / "lease").mkdir()
        body = {"input_file_id": str(tmp_path / "in.jsonl"), "output": str(tmp_path / "out.jsonl")}
        batch = jobs.create(body, trusted=True)
        jobs.resume()
        await until(lambda: batch.has_ended and not jobs.running)
    assert (batch.status, batch.error) == ("completed", None)
    assert engine.seen.total() == 1
