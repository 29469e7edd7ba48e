"""Many rows in one request, where the server takes them so."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator

import pytest

from airflow_arcadia.batch import BatchSpec, Endpoint, run_batch_async
from airflow_arcadia.batch.openai_format import CHAT
from airflow_arcadia.batch.transport.bundles import MOST_ROWS, BundlingClient
from airflow_arcadia.batch.transport.http_client import AnswerTimeout, ConnectionLost, HttpClient
from airflow_arcadia.exceptions import BatchInputError
from tests.batch.fake_engine import CONTEXT, FakeEngine, serving
from tests.batch.reading import answers as read_answers
from tests.batch.reading import text_of, until


def chat(text: str, model: str = "tiny") -> bytes:
    return json.dumps({"model": model, "messages": [{"role": "user", "content": text}]}).encode()


@pytest.fixture
async def engine() -> AsyncIterator[FakeEngine]:
    async with serving() as running:
        running.takes_bundles = True
        yield running


@pytest.fixture
async def client(engine: FakeEngine) -> AsyncIterator[BundlingClient]:
    client = BundlingClient(HttpClient(engine.url))
    yield client
    await client.close()


def post(client: BundlingClient, *texts: str) -> list[asyncio.Task]:
    return [asyncio.create_task(client.post(CHAT, chat(text))) for text in texts]


def answer(response) -> str:
    return json.loads(response.body)["choices"][0]["message"]["content"]


async def test_rows_that_are_sent_together_go_in_one_request(engine, client):
    answers = await asyncio.gather(*post(client, "one", "two", "three"))
    assert [answer(response) for response in answers] == ["ONE", "TWO", "THREE"]
    assert engine.bundles == [3]


async def test_a_bundle_has_no_more_rows_than_it_may(engine, client):
    await asyncio.gather(*post(client, *[f"row {number}" for number in range(MOST_ROWS + 4)]))
    assert sorted(engine.bundles) == [4, MOST_ROWS]


async def test_a_row_is_answered_while_others_of_its_request_still_run(engine, client):
    engine.failing["quick"] = [400]
    engine.delays["slow"] = asyncio.Event()
    slow, quick = post(client, "slow", "quick")
    assert (await quick).status == 400
    assert not slow.done()
    engine.delays["slow"].set()
    assert (await slow).status == 200
    assert engine.bundles == [2]


async def test_a_bad_row_fails_alone(engine, client):
    good, bad = await asyncio.gather(*post(client, "good", "x " * (CONTEXT + 1)))
    assert (good.status, bad.status) == (200, 400)
    assert b"maximum context length" in bad.body


async def test_a_server_that_takes_no_bundles_gets_the_rows_one_by_one(engine, client):
    engine.takes_bundles = False
    answers = await asyncio.gather(*post(client, "one", "two"))
    assert [answer(response) for response in answers] == ["ONE", "TWO"]
    assert (engine.bundles, len(engine.bodies)) == ([], 2)


async def test_rows_go_one_by_one_once_another_server_has_come_up_at_the_address(engine, client):
    await asyncio.gather(*post(client, "one", "two"))
    engine.takes_bundles = False
    answers = await asyncio.gather(*post(client, "three", "four"))
    assert [answer(response) for response in answers] == ["THREE", "FOUR"]
    assert engine.bundles == [2]


async def test_a_refused_bundle_refuses_each_of_its_rows():
    async with serving(FakeEngine(api_key="right")) as engine:
        engine.takes_bundles = True
        client = BundlingClient(HttpClient(engine.url, "right"))
        await asyncio.gather(*post(client, "one"))
        engine.api_key = "changed"
        assert [response.status for response in await asyncio.gather(*post(client, "two", "three"))] == [
            401
        ] * 2
        assert engine.seen == {"one": 1}


async def test_a_lost_connection_loses_only_the_rows_that_were_not_answered(engine, client):
    engine.delays["last"] = asyncio.Event()
    engine.failing["last"] = [0]
    first, last = post(client, "first", "last")
    assert answer(await first) == "FIRST"
    engine.delays["last"].set()
    with pytest.raises(ConnectionLost):
        await last
    assert engine.bundles == [2]


async def test_a_row_that_nobody_waits_for_ends_its_request(engine, client):
    engine.held = asyncio.Event()
    rows = post(client, "one", "two")
    await until(lambda: engine.running == 2)
    rows[0].cancel()
    rows[1].cancel()
    await until(lambda: engine.running == 0)


async def test_rows_without_an_answer_in_time_fail(engine, client):
    engine.held = asyncio.Event()
    rows = post(client, "one", "two")
    await until(lambda: engine.running == 2)
    client.expire(0.0)
    results = await asyncio.gather(*rows, return_exceptions=True)
    assert [type(result) for result in results] == [AnswerTimeout] * 2


async def test_dropped_connections_fail_rows_that_are_sent_and_rows_that_still_gather(engine, client):
    engine.held = asyncio.Event()
    sent = post(client, "sent")
    await until(lambda: engine.running == 1)
    gathering = post(client, "gathering")
    await asyncio.sleep(0)
    client.drop_connections()
    results = await asyncio.gather(*sent, *gathering, return_exceptions=True)
    assert [type(result) for result in results] == [ConnectionLost] * 2


async def test_a_batch_sends_no_answered_row_again_when_its_worker_dies(engine, write_rows, output):
    rows = [{"messages": [{"role": "user", "content": f"row {number}"}]} for number in range(60)]
    dying = "row 30"
    engine.failing[dying] = [0, 0]
    spec = BatchSpec(write_rows(*rows), output, "tiny", max_in_flight=16, retry_base_s=0.01, ordering="input")
    summary = await run_batch_async(spec, [Endpoint(engine.url)])
    assert (summary.ok, summary.failed) == (60, 0)
    assert [text_of(row) for row in read_answers(output)] == [f"ROW {number}" for number in range(60)]
    assert max(engine.bundles) > 1
    # Only those that were on their way with the one that died were sent again.
    again = Counter({text: count for text, count in engine.seen.items() if count > 1})
    assert dying in again
    assert len(again) <= 2 * 16


async def test_a_wrong_key_stops_a_batch_before_its_first_row(write_rows, output):
    async with serving(FakeEngine(api_key="right")) as engine:
        engine.takes_bundles = True
        spec = BatchSpec(write_rows({"prompt": "one"}), output, "tiny")
        with pytest.raises(BatchInputError, match="refuses the API key"):
            await run_batch_async(spec, [Endpoint(engine.url, "wrong")])
        assert engine.bodies == []
