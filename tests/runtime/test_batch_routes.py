"""/v1/batches through the middleware, over HTTP: who may send what, and that nobody harms the server."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from airflow_arcadia.batch import BatchSpec, Endpoint
from airflow_arcadia.batch.batch_api import TOKEN_HEADER, BatchRefusedError, RemoteBatches, Running, judge
from airflow_arcadia.batch.openai_format import CHAT
from tests.batch.reading import answers
from tests.runtime.serving import worker
from tests.s3 import SECRET, Bucket, bucket, s3_url

__all__ = ["bucket", "s3_url"]

TOKEN, KEY = "the-token", "the-key"
PATH = "/v1/batches"


@pytest.fixture
def token_file(tmp_path: Path) -> str:
    path = tmp_path / "token"
    path.write_text(TOKEN)
    return str(path)


@pytest.fixture
def key_file(tmp_path: Path) -> str:
    path = tmp_path / "key"
    path.write_text(KEY)
    return str(path)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "in.jsonl"
    write_rows(path, 3)
    return path


def write_rows(path: Path, count: int) -> None:
    rows = [{"url": CHAT, "body": {"messages": [{"role": "user"}], "prompt": f"p{n}"}} for n in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def spec(source: Path, **options: Any) -> BatchSpec:
    return BatchSpec(str(source), str(source.with_name("out.jsonl")), "tiny", **options)


async def until_ended(batches: RemoteBatches, name: str) -> dict[str, Any]:
    async with asyncio.timeout(20):
        while isinstance(judge(batch := await batches.get(name)), Running):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return batch


async def run(url: str, job: BatchSpec, token: str | None = None) -> dict[str, Any]:
    batches = RemoteBatches(Endpoint(url), token)
    return await until_ended(batches, await batches.submit(job))


async def status_of(url: str, headers: dict[str, str] | None = None, body: Any = None, **kwargs: Any) -> int:
    data = json.dumps({} if body is None else body)
    given = {"Content-Type": "application/json", **(headers or {})}
    async with (
        aiohttp.ClientSession() as session,
        session.post(url + PATH, data=data, headers=given, **kwargs) as response,
    ):
        await response.read()
        return response.status


# -- what may be named -----------------------------------------------------------------------------------


async def test_a_client_names_only_what_the_launch_allows(source: Path):
    async with worker() as (url, _):
        with pytest.raises(BatchRefusedError, match="allowed_uris"):
            await run(url, spec(source))
    async with worker(allowed_uris=(str(source.parent),)) as (url, _):
        assert (await run(url, spec(source)))["status"] == "completed"
        with pytest.raises(BatchRefusedError, match="not below"):
            await run(url, BatchSpec(str(source), "/tmp/elsewhere.jsonl", "tiny"))
    assert len(answers(str(source.with_name("out.jsonl")))) == 3


async def test_the_runs_own_tasks_name_anything_by_their_token(source: Path, token_file: str):
    async with worker(batch_token_file=token_file) as (url, _):
        assert (await run(url, spec(source), TOKEN))["status"] == "completed"
        with pytest.raises(BatchRefusedError):
            await run(url, spec(source), "another")


async def test_a_batch_reads_and_writes_a_store_with_the_credentials_of_the_launch(
    bucket: Bucket, tmp_path: Path, token_file: str
):
    write_rows(tmp_path / "in.jsonl", 3)
    rows = bucket.put("in.jsonl", (tmp_path / "in.jsonl").read_bytes())
    options = tmp_path / "storage-options"
    options.write_text(json.dumps({"s3": bucket.options}))
    job = BatchSpec(rows, f"{bucket.uri}/out.jsonl", "tiny")
    async with worker(batch_token_file=token_file, storage_options_file=str(options)) as (url, _):
        batch = await run(url, job, TOKEN)
        assert batch["status"] == "completed"
        assert SECRET not in json.dumps(batch)
    assert len(bucket.read("out.jsonl").splitlines()) == 3
    async with worker(batch_token_file=token_file) as (url, _):
        batch = await run(url, job, TOKEN)
        assert "credentials are missing" in batch["errors"]["data"][0]["message"]


async def test_the_worker_tells_everybody_when_a_batch_of_its_own_last_got_further(
    source: Path, token_file: str, key_file: str
):
    """The lease watcher renews by it, and holds neither the key nor the token."""

    async def told(url: str) -> Any:
        async with aiohttp.ClientSession() as session, session.post(f"{url}/worker_get_status") as response:
            return (await response.json())["seconds_since_batch_progress"]

    async with worker(batch_token_file=token_file, api_key_file=key_file) as (url, _):
        assert await told(url) is None
        batches = RemoteBatches(Endpoint(url, KEY), TOKEN)
        await until_ended(batches, await batches.submit(spec(source)))
        first = await told(url)
        assert first >= 0
        assert await told(url) > first, "it grows while no row is answered"


async def test_a_client_sees_no_batch_of_the_run(source: Path, token_file: str):
    async with worker(batch_token_file=token_file) as (url, _):
        ours = RemoteBatches(Endpoint(url), TOKEN)
        name = await ours.submit(spec(source))
        await until_ended(ours, name)
        async with aiohttp.ClientSession() as session:
            for method, path in (("GET", name), ("POST", f"{name}/cancel")):
                async with session.request(method, f"{url}{PATH}/{name}", json={}) as response:
                    assert response.status == 404, path
            async with session.get(url + PATH) as response:
                assert (await response.json())["data"] == []
            async with session.get(url + PATH, headers={TOKEN_HEADER: TOKEN}) as response:
                assert [batch["id"] for batch in (await response.json())["data"]] == [name]


async def test_no_content_of_a_file_is_in_an_error(source: Path, token_file: str):
    source.with_suffix(".csv").write_text("root:x:0:0,wheel\n1,2\n")
    job = spec(source.with_suffix(".csv"))
    async with worker(allowed_uris=(str(source.parent),), batch_token_file=token_file) as (url, _):
        failed = await run(url, job)
        assert failed["status"] == "failed"
        assert "x:0:0" not in json.dumps(failed)
        assert "x:0:0" in json.dumps(await run(url, job, TOKEN))


async def test_an_http_input_is_not_redirected_to_another_host(source: Path):
    async def redirect(request: web.Request) -> web.Response:
        raise web.HTTPFound(f"http://localhost:{request.url.port}/rows")

    async def rows(request: web.Request) -> web.FileResponse:
        return web.FileResponse(source)

    app = web.Application()
    app.router.add_get("/allowed/direct", rows)
    app.router.add_get("/allowed/away", redirect)
    app.router.add_get("/rows", rows)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    base = f"http://127.0.0.1:{runner.addresses[0][1]}/allowed"
    try:
        async with worker(allowed_uris=(base, str(source.parent))) as (url, _):
            for name, status in (("direct", "completed"), ("away", "failed")):
                job = BatchSpec(f"{base}/{name}", str(source.with_name(name)), "tiny")
                assert (await run(url, job))["status"] == status, name
    finally:
        await runner.cleanup()


# -- who may ask -----------------------------------------------------------------------------------------


async def test_beyond_loopback_batches_need_a_key_or_the_token(source: Path, token_file: str, key_file: str):
    allowed = (str(source.parent),)
    async with worker(host="0.0.0.0", allowed_uris=allowed, batch_token_file=token_file) as (url, _):
        with pytest.raises(BatchRefusedError, match="without an API key"):
            await run(url, spec(source))
        assert (await run(url, spec(source), TOKEN))["status"] == "completed"
    async with worker(host="0.0.0.0", allowed_uris=allowed, api_key_file=key_file) as (url, _):
        assert await status_of(url, {"Authorization": f"Bearer {KEY}"}) == 400
        assert await status_of(url) == 401


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 400),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Origin": "https://evil.example.com"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "evil.example.com"}, 403),
        ({"Host": "evil.example.com", "Origin": "http://evil.example.com"}, 403),
        ({"Host": "localhost"}, 400),
        ({"Content-Type": "application/json; charset=utf-8"}, 400),
    ],
)
async def test_a_web_page_cannot_send_a_batch(headers: dict[str, str], status: int):
    async with worker() as (url, _):
        assert await status_of(url, headers) == status


# -- limits ----------------------------------------------------------------------------------------------


async def test_a_long_body_is_refused_before_it_is_read():
    async with worker() as (url, _):
        assert await status_of(url, body={"a": "b" * 2**20}) == 413


@pytest.mark.parametrize("body", [b"[" * 100_000, b"{", b"NaN", b"\xff", b'{"input_file_id": 1e999}'])
async def test_json_that_cannot_be_read_is_a_bad_request(body: bytes):
    async with (
        worker() as (url, _),
        aiohttp.ClientSession(headers={"Content-Type": "application/json"}) as session,
        session.post(url + PATH, data=body) as response,
    ):
        assert response.status == 400


async def test_a_list_has_pages(source: Path):
    async with worker(allowed_uris=(str(source.parent),)) as (url, _), aiohttp.ClientSession() as session:
        names = []
        for number in range(3):
            job = BatchSpec(str(source), str(source.with_name(f"out{number}")), "tiny")
            names.insert(0, (await run(url, job))["id"])

        async def page(query: str) -> Any:
            async with session.get(f"{url}{PATH}?{query}") as response:
                return response.status, await response.json()

        _, whole = await page("")
        assert [batch["id"] for batch in whole["data"]] == names
        _, first = await page("limit=2")
        assert ([batch["id"] for batch in first["data"]], first["has_more"]) == (names[:2], True)
        _, rest = await page(f"limit=2&after={first['last_id']}")
        assert ([batch["id"] for batch in rest["data"]], rest["has_more"]) == (names[2:], False)
        for query in ("limit=0", "limit=101", "limit=x", "limit=%C2%B2", "after=unknown"):
            assert (await page(query))[0] == 400, query


# -- a batch that has ended ------------------------------------------------------------------------------


async def test_a_finished_batch_that_is_asked_for_again_is_looked_at_again(source: Path):
    async with worker(allowed_uris=(str(source.parent),)) as (url, served):
        first = await run(url, spec(source))
        begun = served.begun
        again = await run(url, spec(source))
        assert (again["id"], again["summary"]) == (first["id"], first["summary"])
        assert served.begun == begun
        write_rows(source, 5)
        changed = await run(url, spec(source))
        assert changed["status"] == "failed"
        assert "another input" in changed["errors"]["data"][0]["message"]
        source.with_name("out.jsonl").unlink()
        source.with_name("out.jsonl.summary.json").unlink()
        assert (await run(url, spec(source)))["request_counts"]["total"] == 5
