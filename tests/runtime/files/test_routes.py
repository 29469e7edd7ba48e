"""/v1/files and batches on uploads through the middleware, by the `openai` client and by plain HTTP."""

from __future__ import annotations

import asyncio
import errno
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest

from airflow_arcadia.batch.batch_api import TOKEN_HEADER
from airflow_arcadia.batch.openai_format import CHAT
from airflow_arcadia.runtime import middleware
from airflow_arcadia.runtime.files.store import Draft
from tests.batch.reading import until
from tests.runtime.app import Served
from tests.runtime.serving import worker

KEY = "the-key"
HOUR = 3600


@pytest.fixture
def key_file(tmp_path: Path) -> str:
    path = tmp_path / "key"
    path.write_text(KEY)
    return str(path)


@asynccontextmanager
async def client(api_key: str = "any", **settings: Any) -> AsyncIterator[tuple[openai.AsyncOpenAI, Served]]:
    async with (
        worker(**settings) as (url, served),
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=api_key, max_retries=0) as made,
    ):
        yield made, served


def row(number: int, **body: Any) -> dict[str, Any]:
    content = {"messages": [{"role": "user"}], "prompt": f"p{number}", **body}
    return {"custom_id": f"r{number}", "method": "POST", "url": CHAT, "body": content}


def rows(count: int, **body: Any) -> bytes:
    return b"".join(json.dumps(row(number, **body)).encode() + b"\n" for number in range(count))


async def upload(made: openai.AsyncOpenAI, content: bytes | None = None, **more: Any) -> Any:
    return await made.files.create(file=("in.jsonl", content or rows(3)), purpose="batch", **more)


async def create(made: openai.AsyncOpenAI, content: bytes | None = None, **more: Any) -> Any:
    file = await upload(made, content)
    words: dict[str, Any] = {"completion_window": "24h", **more}
    return await made.batches.create(input_file_id=file.id, endpoint=CHAT, **words)


async def ended(made: openai.AsyncOpenAI, name: str) -> Any:
    async with asyncio.timeout(20):
        while True:
            batch = await made.batches.retrieve(name)
            if batch.status in {"completed", "failed", "expired", "cancelled"}:
                return batch
            await asyncio.sleep(0.01)


async def lines(made: openai.AsyncOpenAI, file_id: str) -> list[dict[str, Any]]:
    content = (await made.files.content(file_id)).content
    return [json.loads(line) for line in content.splitlines()]


def counts(batch: Any) -> tuple[int, int, int]:
    told = batch.request_counts
    return told.total, told.completed, told.failed


def waiting_row(number: int) -> bytes:
    """One that is answered when the application is told to go on."""
    return json.dumps(row(number, wait=True)).encode() + b"\n"


# -- files -----------------------------------------------------------------------------------------------


async def test_a_file_is_uploaded_listed_fetched_and_deleted():
    async with client() as (made, _):
        file = await upload(made)
        assert (file.object, file.purpose, file.filename) == ("file", "batch", "in.jsonl")
        assert file.bytes == len(rows(3))
        assert file.expires_at == file.created_at + 30 * 24 * HOUR
        assert await made.files.retrieve(file.id) == file
        assert (await made.files.content(file.id)).content == rows(3)
        assert [one.id async for one in made.files.list()] == [file.id]
        deleted = await made.files.delete(file.id)
        assert (deleted.id, deleted.deleted) == (file.id, True)
        for call in (made.files.retrieve, made.files.content, made.files.delete):
            with pytest.raises(openai.NotFoundError):
                await call(file.id)


async def test_a_large_file_comes_back_as_it_was():
    content = rows(1) + b" " * (5 * 2**20) + b"\n"
    async with client() as (made, _):
        file = await upload(made, content)
        assert (await made.files.content(file.id)).content == content


async def test_files_are_listed_in_pages_by_order_and_purpose():
    async with client() as (made, _):
        ids = [(await upload(made)).id for _ in range(3)]
        newest_first = [file.id async for file in made.files.list(limit=1)]
        assert newest_first == ids[::-1]
        assert [file.id async for file in made.files.list(order="asc")] == ids
        assert [file.id async for file in made.files.list(purpose="batch_output")] == []
        for wrong in ({"limit": 0}, {"limit": 10_001}, {"after": "file-x"}, {"order": "up"}):
            with pytest.raises(openai.BadRequestError):
                await made.files.list(**wrong)


async def test_a_client_says_when_its_file_expires():
    async with client() as (made, _):
        file = await upload(made, expires_after={"anchor": "created_at", "seconds": HOUR})
        assert file.expires_at == file.created_at + HOUR
        for wrong in ({"anchor": "created_at", "seconds": 60}, {"anchor": "now", "seconds": HOUR}):
            with pytest.raises(openai.BadRequestError, match="expires_after"):
                await upload(made, expires_after=wrong)


@pytest.mark.parametrize(
    ("purpose", "content", "told"),
    [("fine-tune", b"x", "purpose"), ("", b"x", "purpose"), ("batch", b"", "empty")],
)
async def test_what_no_batch_can_read_is_not_stored(purpose: Any, content: bytes, told: str):
    async with client() as (made, _):
        with pytest.raises(openai.BadRequestError, match=told):
            await made.files.create(file=("in.jsonl", content), purpose=purpose)
        assert (await made.files.list()).data == []


async def test_size_and_sum_of_files_are_limited():
    async with client(max_file_bytes=1000, max_files_bytes=1500) as (made, _):
        with pytest.raises(openai.APIStatusError, match="at most 1000 bytes") as raised:
            await upload(made, b"x" * 1001)
        assert raised.value.status_code == 413
        first = await upload(made, b"x" * 1000)
        with pytest.raises(openai.APIStatusError, match="Delete files") as raised:
            await upload(made, b"x" * 501)
        assert raised.value.status_code == 413
        await made.files.delete(first.id)
        await upload(made, b"x" * 501)


async def test_an_upload_may_be_larger_than_any_other_request_and_is_refused_before_it_is_read(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(middleware, "MAX_BODY_BYTES", 2**20)
    async with client() as (made, _):
        content = b" " * (2 * 2**20)
        assert (await upload(made, content)).bytes == len(content)
        with pytest.raises(openai.APIStatusError, match="has more than"):
            await made.chat.completions.create(
                model="tiny", messages=[{"role": "user", "content": "x" * 2 * 2**20}]
            )
    async with worker(max_file_bytes=1000) as (url, _), aiohttp.ClientSession() as session:
        headers = {"Content-Type": "multipart/form-data; boundary=x"}
        async with session.post(f"{url}/v1/files", data=b"x" * 200_000, headers=headers) as response:
            assert response.status == 413


async def test_an_upload_that_breaks_off_leaves_nothing(tmp_path: Path):
    lease = tmp_path / "lease"
    lease.mkdir()
    async with worker(lease_file=str(lease / "lease.json")) as (url, _):
        host, _, port = url.removeprefix("http://").partition(":")
        _, writer = await asyncio.open_connection(host, int(port))
        head = f"POST /v1/files HTTP/1.1\r\nHost: {host}\r\nContent-Length: 99999\r\n"
        writer.write(f"{head}Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n".encode())
        await writer.drain()
        await until(lambda: len(list(lease.glob("files/.draft-*"))) == 1)
        writer.close()
        await until(lambda: list(lease.glob("files/.draft-*")) == [])


async def test_a_full_disk_is_said_to_be_one(monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Draft, "write", fail)
    async with client() as (made, _):
        with pytest.raises(openai.InternalServerError, match="No space left") as raised:
            await upload(made)
        assert raised.value.status_code == 507
        assert (await made.files.list()).data == []


# -- batches on them -------------------------------------------------------------------------------------


async def test_a_batch_on_an_upload_gives_answers_and_error_rows_as_files():
    content = rows(2) + b"no json\n" + json.dumps(row(3)).encode() + b"\n"
    async with client() as (made, _):
        batch = await create(made, content, metadata={"key": "value"})
        assert (batch.status, batch.endpoint, batch.completion_window) == ("validating", CHAT, "24h")
        assert batch.expires_at == batch.created_at + 24 * HOUR
        batch = await ended(made, batch.id)
        assert batch.status == "completed"
        assert batch.metadata == {"key": "value"}
        assert batch.created_at <= batch.in_progress_at <= batch.finalizing_at <= batch.completed_at
        assert counts(batch) == (4, 3, 1)
        good = await lines(made, batch.output_file_id)
        assert [line["custom_id"] for line in good] == ["r0", "r1", "r3"]
        assert good[0]["response"]["body"]["choices"][0]["text"] == "P0"
        [bad] = await lines(made, batch.error_file_id)
        assert (bad["custom_id"], bad["error"]["code"]) == ("row-3", "invalid_json")
        outputs = [file async for file in made.files.list(purpose="batch_output")]
        assert {file.id for file in outputs} == {batch.output_file_id, batch.error_file_id}
        assert all(file.bytes > 0 for file in outputs)


async def test_a_batch_without_a_failed_row_has_no_error_file_and_one_without_an_answer_no_output():
    async with client() as (made, _):
        good = await ended(made, (await create(made)).id)
        assert (good.output_file_id is None, good.error_file_id) == (False, None)
        bad = await ended(made, (await create(made, rows(3, fail=True))).id)
        assert (bad.status, bad.output_file_id, bad.error_file_id is None) == ("completed", None, False)


async def test_each_request_is_a_batch_of_its_own():
    async with client() as (made, _):
        file = await upload(made)
        words: Any = {"input_file_id": file.id, "endpoint": CHAT, "completion_window": "24h"}
        ids = [(await made.batches.create(**words)).id for _ in range(2)]
        assert len(set(ids)) == 2
        texts = [await lines(made, (await ended(made, name)).output_file_id) for name in ids]
        assert texts[0] == texts[1]


async def test_partial_output_is_readable_while_the_batch_runs(tmp_path: Path):
    content = rows(3) + waiting_row(3)
    options = {"options": {"max_in_flight": 1, "ordering": "input", "segment_rows": 1}}
    (tmp_path / "token").write_text("token")
    async with client(batch_token_file=str(tmp_path / "token")) as (anyone, served):
        made = anyone.with_options(default_headers={TOKEN_HEADER: "token"})  # who may set segment_rows
        batch = await create(made, content, extra_body=options)
        await until(lambda: served.finished == 3)
        batch = await made.batches.retrieve(batch.id)
        assert batch.status == "in_progress"
        listed = [file async for file in made.files.list(purpose="batch_output")]
        assert batch.output_file_id in [file.id for file in listed]
        async with asyncio.timeout(20):
            while len(found := await lines(made, batch.output_file_id)) < 3:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert sorted(line["custom_id"] for line in found) == ["r0", "r1", "r2"]
        for used in (batch.input_file_id, batch.output_file_id):
            with pytest.raises(openai.ConflictError):
                await made.files.delete(used)
        served.go.set()
        done = await ended(made, batch.id)
        assert done.output_file_id == batch.output_file_id
        assert [line["custom_id"] for line in await lines(made, done.output_file_id)] == [
            "r0",
            "r1",
            "r2",
            "r3",
        ]
        await made.files.delete(batch.input_file_id)


async def test_a_cancelled_batch_keeps_its_answers_and_says_what_was_not_done():
    content = rows(2) + waiting_row(2) + json.dumps(row(3)).encode() + b"\n"
    options = {"options": {"max_in_flight": 1, "ordering": "input"}}
    async with client() as (made, served):
        batch = await create(made, content, extra_body=options)
        await until(lambda: served.running == 1 and served.finished == 2)
        cancelling = await made.batches.cancel(batch.id)
        assert cancelling.status == "cancelling"
        assert cancelling.cancelling_at is not None
        batch = await ended(made, batch.id)
        assert (batch.status, batch.cancelled_at is None) == ("cancelled", False)
        assert counts(batch) == (4, 2, 0)
        assert [line["custom_id"] for line in await lines(made, batch.output_file_id)] == ["r0", "r1"]
        left = await lines(made, batch.error_file_id)
        assert [(line["custom_id"], line["error"]["code"]) for line in left] == [
            ("r2", "batch_cancelled"),
            ("r3", "batch_cancelled"),
        ]


async def test_a_batch_expires_with_its_completion_window():
    content = rows(1) + waiting_row(1)
    options = {"options": {"max_in_flight": 1, "ordering": "input"}}
    async with client() as (made, _):
        batch = await create(made, content, completion_window="1s", extra_body=options)
        assert batch.expires_at == batch.created_at + 1
        batch = await ended(made, batch.id)
        assert (batch.status, batch.expired_at is None) == ("expired", False)
        codes = [line["error"]["code"] for line in await lines(made, batch.error_file_id)]
        assert set(codes) == {"batch_expired"}


async def test_a_client_may_say_how_many_rows_may_fail():
    async with client() as (made, _):
        options = {"options": {"max_failed_rows": 0}}
        batch = await ended(made, (await create(made, rows(3, fail=True), extra_body=options)).id)
        assert (batch.status, batch.error_file_id is None) == ("failed", False)


async def test_a_batch_that_cannot_be_run_fails_with_its_reason_and_no_path_of_the_worker(tmp_path: Path):
    lease = tmp_path / "lease"
    lease.mkdir()
    async with client(lease_file=str(lease / "lease.json")) as (made, _):
        batch = await ended(made, (await create(made, b'{"custom_id": "a"}\n')).id)
        assert batch.status == "failed"
        assert batch.errors.data[0].code == "batch_failed"
        assert batch.input_file_id in batch.errors.data[0].message
        assert str(tmp_path) not in batch.errors.data[0].message
        assert (batch.output_file_id, batch.error_file_id) == (None, None)
        # A moment after the batch has failed its folder goes.
        await until(lambda: list(lease.glob("files/batch_*")) == [])


@pytest.mark.parametrize(
    "wrong",
    [
        {"input_file_id": "file-unknown"},
        {"completion_window": "soon"},
        {"completion_window": "0s"},
        {"completion_window": "31d"},
        {"extra_body": {"output": "/tmp/out.jsonl"}},
        {"extra_body": {"options": {"input_format": "csv"}}},
        {"extra_body": {"output_expires_after": {"anchor": "created_at", "seconds": 1}}},
        {"extra_body": {"output_expires_after": "soon"}},
    ],
)
async def test_a_request_that_makes_no_sense_is_refused_and_starts_nothing(wrong: dict[str, Any]):
    async with client() as (made, _):
        file = await upload(made)
        words: Any = {"input_file_id": file.id, "endpoint": CHAT, "completion_window": "24h"}
        with pytest.raises(openai.BadRequestError):
            await made.batches.create(**{**words, **wrong})
        assert (await made.batches.list()).data == []


async def test_an_output_is_no_input():
    async with client() as (made, _):
        done = await ended(made, (await create(made)).id)
        with pytest.raises(openai.BadRequestError, match="purpose"):
            await made.batches.create(
                input_file_id=done.output_file_id, endpoint=CHAT, completion_window="24h"
            )


async def test_outputs_expire_when_the_client_says_so():
    async with client() as (made, _):
        after: Any = {"anchor": "created_at", "seconds": HOUR}
        done = await ended(made, (await create(made, output_expires_after=after)).id)
        file = await made.files.retrieve(done.output_file_id)
        assert file.expires_at == file.created_at + HOUR


async def test_a_worker_launched_again_has_the_files_and_goes_on_with_the_batch(tmp_path: Path):
    lease = tmp_path / "lease"
    lease.mkdir()
    settings = {"lease_file": str(lease / "lease.json")}
    content = rows(2) + waiting_row(2)
    options = {"options": {"max_in_flight": 1, "ordering": "input"}}
    async with client(**settings) as (made, served):
        batch = await create(made, content, extra_body=options)
        await until(lambda: served.running == 1 and served.finished == 2)
        record = (lease / f"{batch.id}.json").read_text()
        # As a killed worker leaves it: its record still says that it runs.
        assert json.loads(record)["status"] == "in_progress"
    (lease / f"{batch.id}.json").write_text(record)
    async with client(**settings) as (made, served):
        served.go.set()
        done = await ended(made, batch.id)
        assert done.status == "completed"
        assert [line["custom_id"] for line in await lines(made, done.output_file_id)] == ["r0", "r1", "r2"]
        assert (await made.files.retrieve(batch.input_file_id)).filename == "in.jsonl"


# -- who may ask -----------------------------------------------------------------------------------------


async def test_files_need_the_key(key_file: str):
    async with client("wrong", api_key_file=key_file) as (made, _):
        for call in (made.files.list(), upload(made), made.files.content("file-x")):
            with pytest.raises(openai.AuthenticationError):
                await call
    async with client(KEY, api_key_file=key_file) as (made, _):
        assert (await upload(made)).purpose == "batch"


async def test_beyond_loopback_files_need_a_key_or_the_token(tmp_path: Path):
    (tmp_path / "token").write_text("token")
    async with client(host="0.0.0.0", batch_token_file=str(tmp_path / "token")) as (made, _):
        with pytest.raises(openai.PermissionDeniedError, match="without an API key"):
            await upload(made)
        assert (await upload(made, extra_headers={TOKEN_HEADER: "token"})).purpose == "batch"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": "https://evil.example.com"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "evil.example.com"}, 403),
        ({"Host": "localhost"}, 200),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/json"}, 415),
    ],
)
async def test_a_web_page_cannot_upload_or_read(headers: dict[str, str], status: int):
    body = (
        b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nrows\r\n--x--\r\n'
    )
    given = {"Content-Type": "multipart/form-data; boundary=x", **headers}
    async with worker() as (url, _), aiohttp.ClientSession() as session:
        async with session.post(f"{url}/v1/files", data=body, headers=given) as response:
            assert response.status == status
        async with session.get(f"{url}/v1/files", headers=headers) as response:
            assert response.status == (200 if status == 415 else status)


@pytest.mark.parametrize(
    "name", ["..", "../lease.json", "%2e%2e%2flease.json", "file-", ".", "batch_x", "a\x00"]
)
async def test_no_path_leads_out_of_the_store(tmp_path: Path, name: str):
    (tmp_path / "lease").mkdir()
    (tmp_path / "lease" / "lease.json").write_text("secret")
    async with worker(lease_file=str(tmp_path / "lease" / "lease.json")) as (url, _):
        host, _, port = url.removeprefix("http://").partition(":")
        for path in (f"/v1/files/{name}", f"/v1/files/{name}/content"):
            reader, writer = await asyncio.open_connection(host, int(port))
            request = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
            writer.write(request.encode("latin-1"))
            answer = await reader.read()
            writer.close()
            assert answer.split()[1] in {b"400", b"404", b"405"}, answer
            assert b"secret" not in answer


async def test_a_clients_name_cannot_break_the_answers_headers():
    async with client() as (made, _):
        file = await made.files.create(file=('a";\nX: y ü/b.jsonl', rows(1)), purpose="batch")
        response = await made.files.with_raw_response.content(file.id)
        assert "X" not in response.headers
        assert response.headers["content-disposition"].startswith("attachment; filename*=UTF-8")


async def test_a_clients_batch_is_listed_for_clients_and_the_runs_own_is_not(tmp_path: Path):
    (tmp_path / "token").write_text("token")
    async with client(batch_token_file=str(tmp_path / "token")) as (made, _):
        file = await upload(made)
        words: Any = {"input_file_id": file.id, "endpoint": CHAT, "completion_window": "24h"}
        ours = await made.batches.create(**words, extra_headers={TOKEN_HEADER: "token"})
        theirs = await made.batches.create(**words)
        assert (ours.expires_at, theirs.expires_at is None) == (None, False)
        assert [batch.id async for batch in made.batches.list()] == [theirs.id]
