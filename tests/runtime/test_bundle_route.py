"""Bundles through the middleware, over HTTP."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
import uvicorn

from airflow_arcadia.batch import BatchSpec, Endpoint, run_batch_async
from airflow_arcadia.batch.openai_format import CHAT
from airflow_arcadia.batch.transport.bundles import PATH, Answers, BundlingClient, pack
from airflow_arcadia.batch.transport.http_client import HttpClient
from airflow_arcadia.ports import free_port
from airflow_arcadia.runtime.middleware import ArcadiaMiddleware
from airflow_arcadia.worker import WorkerSpec
from tests.batch.reading import answers, until
from tests.runtime.app import Served


def row(**fields) -> bytes:
    return json.dumps({"prompt": "hello", **fields}).encode()


@asynccontextmanager
async def worker(key_file: Path | None = None) -> AsyncIterator[tuple[str, Served]]:
    """URL of a server with the middleware, and the application below it."""
    served, port = Served(), free_port()
    spec = WorkerSpec(
        name="w", model="tiny", port=port, host="127.0.0.1", api_key_file=str(key_file) if key_file else None
    )
    served.app.add_middleware(ArcadiaMiddleware, spec=spec)
    config = uvicorn.Config(served.app, host="127.0.0.1", port=port, log_level="error", lifespan="on")
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    await until(lambda: server.started)
    try:
        yield f"http://127.0.0.1:{port}", served
    finally:
        server.should_exit = True
        await task


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_text("secret")
    return path


async def test_each_row_is_answered_and_a_bad_one_fails_alone():
    async with worker() as (url, served):
        client = BundlingClient(HttpClient(url))
        rows = [row(), row(fail=True), row(prompt="other")]
        before = served.through_middleware
        found = await asyncio.gather(*[client.post(CHAT, body) for body in rows])
        assert [answer.status for answer in found] == [200, 400, 200]
        assert json.loads(found[2].body) == {"text": "OTHER"}
        assert found[1].retry_after == "3"
        # The bad one alone was asked again as a whole call.
        assert served.through_middleware == before + 1
        client.drop_connections()


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}])
async def test_a_bundle_needs_the_api_key(key_file, headers):
    async with worker(key_file) as (url, served), aiohttp.ClientSession(headers=headers) as session:
        for call in (session.get(url + PATH), session.post(url + PATH, data=pack([(CHAT, row())]))):
            async with call as response:
                assert response.status == 401
        assert served.running == 0


async def test_rows_that_are_answered_are_sent_while_others_run(key_file):
    headers = {"Authorization": "Bearer secret"}
    async with worker(key_file) as (url, served), aiohttp.ClientSession(headers=headers) as session:
        data = pack([(CHAT, row(wait=True)), (CHAT, row())])
        async with session.post(url + PATH, data=data) as response:
            reader = Answers()
            found = list(reader.feed(await response.content.readline()))
            assert [(number, answer.status) for number, answer in found] == [(1, 200)]
            assert served.running == 1
            served.go.set()
            assert [number for number, _ in reader.feed(await response.content.read())] == [0]


async def test_a_client_that_goes_away_ends_its_rows():
    async with worker() as (url, served):
        client = BundlingClient(HttpClient(url))
        tasks = [asyncio.create_task(client.post(CHAT, row(wait=True))) for _ in range(4)]
        await until(lambda: served.running == 4)
        client.drop_connections()
        await asyncio.gather(*tasks, return_exceptions=True)
        await until(lambda: served.running == 0)


@pytest.mark.parametrize(("method", "data", "status"), [("POST", b"nonsense", 400), ("PUT", b"", 405)])
async def test_what_is_no_bundle_is_refused(method, data, status):
    async with (
        worker() as (url, _),
        aiohttp.ClientSession() as session,
        session.request(method, url + PATH, data=data) as response,
    ):
        assert response.status == status
        assert (await response.json())["error"]["code"] == status


async def test_rows_beyond_the_three_urls_get_no_answer():
    data = pack([("/v1/batches", b"{}")])
    async with (
        worker() as (url, _),
        aiohttp.ClientSession() as session,
        session.post(url + PATH, data=data) as response,
    ):
        assert (await response.read()).startswith(b"0 404 ")


async def test_a_batch_over_http_sends_its_rows_past_the_middleware(tmp_path):
    source, output = tmp_path / "in.jsonl", str(tmp_path / "out.jsonl")
    rows = [{"url": CHAT, "body": {"messages": [{"role": "user"}], "prompt": f"p{n}"}} for n in range(20)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    async with worker() as (url, served):
        before = served.through_middleware
        summary = await run_batch_async(BatchSpec(str(source), output, "tiny"), [Endpoint(url)])
        assert summary.ok == 20
        # The list of models alone.
        assert served.through_middleware == before + 1
    assert [line["response"]["body"]["text"] for line in answers(output)] == [f"P{n}" for n in range(20)]
