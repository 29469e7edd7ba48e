"""Bundles through the middleware, over HTTP."""

import asyncio
import json
from pathlib import Path

import aiohttp
import pytest

from airflow_arcadia.batch import BatchSpec, Endpoint, run_batch_async
from airflow_arcadia.batch.openai_format import CHAT
from airflow_arcadia.batch.transport.bundles import MAX_ROWS, PATH, Answers, BundlingClient, pack
from airflow_arcadia.batch.transport.http_client import HttpClient
from tests.batch.reading import answers, until
from tests.runtime.serving import worker


def row(**fields) -> bytes:
    return json.dumps({"prompt": "hello", **fields}).encode()


@pytest.fixture
def key_file(tmp_path: Path) -> str:
    path = tmp_path / "key"
    path.write_text("secret")
    return str(path)


async def test_each_row_is_answered_and_a_bad_one_fails_alone():
    async with worker() as (url, served):
        client = BundlingClient(HttpClient(url))
        rows = [row(), row(fail=True), row(prompt="other")]
        before = served.through_middleware
        found = await asyncio.gather(*[client.post(CHAT, body) for body in rows])
        assert [answer.status for answer in found] == [200, 400, 200]
        assert json.loads(found[2].body)["text"] == "OTHER"
        assert found[1].retry_after == "3"
        # The bad one alone was asked again as a whole call.
        assert served.through_middleware == before + 1
        client.drop_connections()


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}])
async def test_a_bundle_needs_the_api_key(key_file, headers):
    async with (
        worker(api_key_file=key_file) as (url, served),
        aiohttp.ClientSession(headers=headers) as session,
    ):
        for call in (session.get(url + PATH), session.post(url + PATH, data=pack([(CHAT, row())]))):
            async with call as response:
                assert response.status == 401
        assert served.running == 0


async def test_rows_that_are_answered_are_sent_while_others_run(key_file):
    headers = {"Authorization": "Bearer secret"}
    async with (
        worker(api_key_file=key_file) as (url, served),
        aiohttp.ClientSession(headers=headers) as session,
    ):
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
        assert (served.begun, served.finished) == (4, 0)


@pytest.mark.parametrize(("method", "data", "status"), [("POST", b"nonsense", 400), ("PUT", b"", 405)])
async def test_what_is_no_bundle_is_refused(method, data, status):
    async with (
        worker() as (url, _),
        aiohttp.ClientSession() as session,
        session.request(method, url + PATH, data=data) as response,
    ):
        assert response.status == status
        assert (await response.json())["error"]["code"] == status


@pytest.mark.parametrize(("rows", "status"), [(MAX_ROWS, 200), (MAX_ROWS + 1, 413), (110_376, 413)])
async def test_a_bundle_of_more_rows_than_are_taken_is_refused_before_any_is_answered(rows, status):
    data = pack([("/none", b"{}")] * rows) + b"\n"
    async with (
        worker() as (url, served),
        aiohttp.ClientSession() as session,
        session.post(url + PATH, data=data) as response,
    ):
        assert response.status == status
        answer = await response.read()
        if status == 200:
            assert len(answer.splitlines()) == rows
        else:
            assert f"more than {MAX_ROWS} rows" in answer.decode()
            assert served.through_middleware == 1, "the worker's own first generation"


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
