"""The same batch on storage that is no local disk: a real S3 API over HTTP, and fsspec's memory."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from moto.server import ThreadedMotoServer

from airflow_arcadia.batch import BatchSpec, Endpoint, check_input, run_batch_async
from airflow_arcadia.batch.output.job import Job, Superseded
from airflow_arcadia.batch.output.segments import SegmentBuffer
from airflow_arcadia.batch.storage import open_folder
from airflow_arcadia.exceptions import BatchInputError
from tests.batch.fake_engine import FakeEngine
from tests.batch.output.test_job import MANIFEST
from tests.batch.reading import stopped_after

ROWS = [{"custom_id": f"r{row}", "prompt": f"row {row}"} for row in range(200)]


@pytest.fixture(scope="module")
def s3_url() -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(params=["s3", "memory"])
def bucket(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URI of an empty folder."""
    if request.param == "s3":
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "testing")
        monkeypatch.setenv("AWS_ENDPOINT_URL", request.getfixturevalue("s3_url"))
        fsspec.filesystem("s3").makedirs("prompts", exist_ok=True)
    uri = f"{request.param}://prompts/{request.node.name.partition('[')[0]}"
    yield uri
    fs, path = fsspec.core.url_to_fs(uri)
    fs.invalidate_cache()
    if fs.exists(path):
        fs.rm(path, recursive=True)
    type(fs).clear_instance_cache()


def put(uri: str, rows: list[Any]) -> str:
    fs, path = fsspec.core.url_to_fs(uri)
    fs.pipe_file(path, "".join(json.dumps(row) + "\n" for row in rows).encode())
    return uri


def names(uri: str) -> list[str]:
    fs, path = fsspec.core.url_to_fs(uri)
    fs.invalidate_cache()
    return sorted(found[len(path) :].strip("/") for found in fs.find(path))


def read(uri: str) -> bytes:
    fs, path = fsspec.core.url_to_fs(uri)
    return bytes(fs.cat_file(path))


async def test_rows_come_from_and_answers_go_to_a_store(engine: FakeEngine, bucket: str):
    spec = BatchSpec(put(f"{bucket}/in.jsonl", ROWS), f"{bucket}/out/answers.jsonl", "tiny")
    assert check_input(spec) == 200
    summary = await run_batch_async(spec, [Endpoint(engine.url)])
    assert summary.output == f"{bucket}/out/answers.jsonl"
    found = [json.loads(line) for line in read(summary.output).splitlines()]
    assert [row["custom_id"] for row in found] == [f"r{row}" for row in range(200)]
    assert names(bucket) == ["in.jsonl", "out/answers.jsonl", "out/answers.jsonl.summary.json"]
    assert await run_batch_async(spec, [Endpoint(engine.url)]) == summary
    assert engine.seen.total() == 200


async def test_an_interrupted_batch_goes_on_from_the_store(engine: FakeEngine, bucket: str):
    engine.delay = 0.01
    spec = BatchSpec(
        put(f"{bucket}/in.jsonl", ROWS),
        f"{bucket}/answers.jsonl",
        "tiny",
        max_in_flight=8,
        segment_seconds=0.05,
    )
    await stopped_after(spec, engine, 80)
    summary = await run_batch_async(spec, [Endpoint(engine.url)])
    assert summary.resumed_rows >= 70
    assert engine.seen.total() <= 208
    found = [json.loads(line) for line in read(summary.output).splitlines()]
    assert [row["custom_id"] for row in found] == [f"r{row}" for row in range(200)]
    put(spec.input, ROWS[:-1])
    with pytest.raises(BatchInputError, match="another input"):
        await run_batch_async(spec, [Endpoint(engine.url)])


async def test_failed_rows_are_sent_again_from_the_store(engine: FakeEngine, bucket: str):
    engine.failing = {"row 3": [500] * 5}
    spec = BatchSpec(
        put(f"{bucket}/in.jsonl", ROWS),
        f"{bucket}/answers.jsonl",
        "tiny",
        retry_base_s=0.01,
    )
    assert (await run_batch_async(spec, [Endpoint(engine.url)])).failed == 1
    assert "answers.jsonl.errors.jsonl" in names(bucket)
    again = BatchSpec(**{**spec.to_dict(), "retry_failed_only": True})
    assert (await run_batch_async(again, [Endpoint(engine.url)])).failed == 0
    assert names(bucket) == ["answers.jsonl", "answers.jsonl.summary.json", "in.jsonl"]
    assert engine.seen["row 4"] == 1


def test_input_that_is_missing_or_empty(bucket: str):
    with pytest.raises(BatchInputError, match="does not exist"):
        check_input(BatchSpec(f"{bucket}/none.jsonl", f"{bucket}/out.jsonl", "tiny"))
    with pytest.raises(BatchInputError, match="is empty"):
        check_input(BatchSpec(put(f"{bucket}/in.jsonl", []), f"{bucket}/out.jsonl", "tiny"))


def test_only_one_of_two_attempts_gets_a_token(bucket: str):
    folder = open_folder(f"{bucket}/parts")
    folder.create()
    folder.create_only("attempt", b"first")
    with pytest.raises(FileExistsError):
        folder.create_only("attempt", b"second")
    assert folder.read("attempt") == b"first"


def test_an_attempt_thought_dead_cannot_commit(bucket: str):
    def buffer(row: int) -> SegmentBuffer:
        filled = SegmentBuffer()
        filled.add(row, b"line", failed=False)
        return filled

    folder = open_folder(f"{bucket}/parts")
    folder.create()
    first = Job.claim(folder, MANIFEST)
    first.commit(buffer(0))
    second = Job.claim(open_folder(f"{bucket}/parts"), MANIFEST)
    with pytest.raises(Superseded):
        first.commit(buffer(1))
    second.commit(buffer(1))
    assert list(Job.claim(open_folder(f"{bucket}/parts"), MANIFEST).pending()) == [2, 3, 4, 5]


def test_a_bucket_that_is_missing_is_said_and_not_made(s3_url: str, bucket: str):
    if not bucket.startswith("s3"):
        pytest.skip("only object stores have buckets")
    path = put(f"{bucket}/in.jsonl", ROWS)
    spec = BatchSpec(path, "s3://nobodys-bucket/out.jsonl", "tiny")
    with pytest.raises(BatchInputError, match="nobodys-bucket does not exist"):
        check_input(spec)
    assert not fsspec.filesystem("s3").exists("nobodys-bucket")


def test_missing_credentials_are_said_before_anything_starts(
    s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_url)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    (tmp_path / "in.jsonl").write_text('{"prompt": "x"}\n')
    with pytest.raises(BatchInputError, match="credentials are missing or wrong"):
        check_input(BatchSpec(str(tmp_path / "in.jsonl"), "s3://prompts/out.jsonl", "tiny"))
    with pytest.raises(BatchInputError, match=r"in\.jsonl .*credentials are missing or wrong"):
        check_input(BatchSpec("s3://prompts/in.jsonl", str(tmp_path / "out.jsonl"), "tiny"))
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def test_a_check_proves_that_the_output_can_be_written_and_leaves_nothing(bucket: str):
    path = put(f"{bucket}/in.jsonl", ROWS)
    assert check_input(BatchSpec(path, f"{bucket}/out/answers.jsonl", "tiny")) == 200
    assert names(bucket) == ["in.jsonl"]


def test_an_output_that_may_not_be_written_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from fsspec.implementations.memory import MemoryFileSystem

    def forbidden(self: MemoryFileSystem, path: str, value: bytes, **kwargs: Any) -> None:
        raise PermissionError("Access Denied")

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", forbidden)
    (tmp_path / "in.jsonl").write_text('{"prompt": "x"}\n')
    with pytest.raises(BatchInputError, match="may not be used: Access Denied"):
        check_input(BatchSpec(str(tmp_path / "in.jsonl"), "memory://closed/out.jsonl", "tiny"))


@pytest.mark.parametrize("where", ["local", "memory"])
def test_a_name_that_is_too_long_is_refused(tmp_path: Path, where: str):
    (tmp_path / "in.jsonl").write_text('{"prompt": "x"}\n')
    folder = tmp_path if where == "local" else "memory://long"
    with pytest.raises(BatchInputError, match="more than 224 bytes"):
        check_input(BatchSpec(str(tmp_path / "in.jsonl"), f"{folder}/{'x' * 240}", "tiny"))


@pytest.mark.parametrize("name", ["answers[1].jsonl", "answers*?.jsonl", "an%20swer #1 +ü.jsonl"])
async def test_odd_names_are_literal_on_a_store(engine: FakeEngine, bucket: str, name: str):
    source = put(f"{bucket}/in.jsonl", ROWS)
    kept = BatchSpec(source, f"{bucket}/answers1.jsonl", "tiny", keep_segments=True)
    await run_batch_async(kept, [Endpoint(engine.url)])
    before = names(bucket)
    assert any(".answers1.jsonl.parts" in found for found in before)
    odd = BatchSpec(source, f"{bucket}/{name}", "tiny", max_in_flight=8, segment_seconds=0.05)
    engine.delay, engine.seen = 0.01, Counter()
    await stopped_after(odd, engine, 80)
    assert (await run_batch_async(odd, [Endpoint(engine.url)])).resumed_rows >= 60
    assert sorted(set(names(bucket)) - set(before)) == [name, f"{name}.summary.json"]
    assert set(before) <= set(names(bucket))
