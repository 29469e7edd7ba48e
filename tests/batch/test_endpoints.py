"""What an endpoint fails at is not the rows' failure."""

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from airflow_arcadia.batch import BatchSpec, BatchSummary, Endpoint, run_batch_async
from airflow_arcadia.batch.row_queue import MAX_RETURNS
from airflow_arcadia.exceptions import BatchError, BatchInputError
from tests.batch.fake_engine import FakeEngine, serving
from tests.batch.reading import answers, codes, text_of, until

Write = Callable[..., str]


def spec(input: str, output: str, **options: Any) -> BatchSpec:
    defaults = {"retry_base_s": 0.01, "max_in_flight": 32, "segment_seconds": 0.2, "ordering": "input"}
    return BatchSpec(input, output, "tiny", **{**defaults, **options})


def rows(count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"row {number}"} for number in range(count)]


async def run(options: BatchSpec, *engines: FakeEngine) -> BatchSummary:
    return await run_batch_async(options, [Endpoint(engine.url) for engine in engines])


def assert_all_answered(output: str, count: int) -> None:
    assert [text_of(row) for row in answers(output)] == [f"ROW {number}" for number in range(count)]


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500, 502, 503, 504])
@pytest.mark.parametrize("bundles", [False, True])
async def test_an_endpoint_that_refuses_everything_at_once_costs_no_row(
    write_rows: Write, output: str, status: int, bundles: bool
):
    async with serving() as sick, serving() as sound:
        sick.refusing = status
        sick.takes_bundles = sound.takes_bundles = bundles
        sound.delay = 0.05
        summary = await run(spec(write_rows(*rows(300)), output), sick, sound)
        assert (summary.ok, summary.failed) == (300, 0)
        assert_all_answered(output, 300)
        # It got one load of rows and then probes.
        assert sick.seen.total() <= 32 + MAX_RETURNS


async def test_a_gateway_that_is_away_for_a_while_costs_no_row(
    engine: FakeEngine, write_rows: Write, output: str
):
    engine.delay = 0.01
    running = asyncio.create_task(run(spec(write_rows(*rows(300)), output), engine))
    for reached in (50, 150):
        await until(lambda least=reached: engine.seen.total() >= least)
        probes = engine.probes
        engine.refusing = 503
        await until(lambda before=probes: engine.probes >= before + 4)
        engine.refusing = 0
    summary = await running
    assert (summary.ok, summary.failed) == (300, 0)
    assert_all_answered(output, 300)


async def test_a_drained_worker_gets_no_rows_while_its_last_ones_still_run(write_rows: Write, output: str):
    async with serving() as drained, serving() as other:
        drained.delay = other.delay = 0.02
        long = asyncio.Event()
        drained.delays["row 0"] = other.delays["row 0"] = long
        running = asyncio.create_task(run(spec(write_rows(*rows(400)), output), drained, other))
        await until(lambda: drained.seen.total() >= 60)
        drained.refusing = 503
        sent = drained.seen.total()
        await until(lambda: other.seen.total() >= 200)
        assert drained.seen.total() <= sent + 32
        long.set()
        summary = await running
        assert (summary.ok, summary.failed) == (400, 0)


def _date() -> str:
    return format_datetime(datetime.now(timezone.utc) + timedelta(seconds=3), usegmt=True)


@pytest.mark.parametrize("retry_after", ["1", _date])
async def test_an_endpoint_is_left_alone_for_as_long_as_it_asks(
    engine: FakeEngine, write_rows: Write, output: str, retry_after: str | Callable[[], str]
):
    engine.refusing = 429
    engine.retry_after = retry_after if isinstance(retry_after, str) else retry_after()
    clock = asyncio.get_running_loop().time
    running = asyncio.create_task(run(spec(write_rows(*rows(40)), output, max_in_flight=1), engine))
    await until(lambda: engine.seen.total() == 1)
    began = clock()
    engine.refusing = 0
    await until(lambda: engine.seen.total() > 1)
    assert clock() - began >= 0.9
    assert (await running).ok == 40


async def test_a_rate_limit_costs_no_row(engine: FakeEngine, write_rows: Write, output: str):
    """20 rows in each fifth of a second, of any number that are sent."""
    stop = asyncio.Event()

    async def limit() -> None:
        while not stop.is_set():
            allowed = engine.seen.total() + 20
            engine.refusing = 0
            await asyncio.sleep(0)
            deadline = asyncio.get_running_loop().time() + 0.2
            while asyncio.get_running_loop().time() < deadline and not stop.is_set():
                engine.refusing = 429 if engine.seen.total() >= allowed else 0
                await asyncio.sleep(0)

    engine.retry_after = "0.2"
    limiting = asyncio.create_task(limit())
    summary = await run(spec(write_rows(*rows(200)), output, max_in_flight=64), engine)
    stop.set()
    await limiting
    assert (summary.ok, summary.failed) == (200, 0)


@pytest.mark.parametrize("status", [500, 503, 403])
async def test_a_failure_that_hits_one_row_alone_is_the_rows(write_rows: Write, output: str, status: int):
    async with serving() as first, serving() as second:
        first.failing = {"row 7": [status] * 99}
        second.failing = {"row 7": [status] * 99}
        summary = await run(spec(write_rows(*rows(100)), output, max_attempts=3), first, second)
        assert (summary.ok, summary.failed) == (99, 1)
        assert codes(output)[7] in {"server_error", "forbidden"}


@pytest.mark.parametrize("status", [500, 403])
async def test_a_row_that_fails_at_one_endpoint_is_sent_to_another(
    write_rows: Write, output: str, status: int
):
    async with serving() as first, serving() as second:
        for engine in (first, second):
            engine.delay = 0.01
        first.failing = {f"row {number}": [status] * 99 for number in range(100)}
        options = spec(write_rows(*rows(100)), output, max_attempts=2, max_in_flight=4)
        summary = await run(options, first, second)
        assert (summary.ok, summary.failed) == (100, 0)


async def test_an_answer_that_is_none_is_asked_for_again_and_becomes_an_error_row(
    engine: FakeEngine, write_rows: Write, output: str
):
    engine.answering = {"row 1": {}, "row 2": {"choices": []}, "row 3": {"error": {"message": "overloaded"}}}
    summary = await run(spec(write_rows(*rows(8)), output, max_attempts=2), engine)
    assert (summary.ok, summary.failed) == (5, 3)
    assert codes(output) == [None, "invalid_answer", "invalid_answer", "server_error", *[None] * 4]
    assert engine.seen["row 1"] == 2


async def test_an_answer_that_cannot_be_written_down_is_one_rows_failure(
    engine: FakeEngine, write_rows: Write, output: str
):
    deep: Any = 1
    for _ in range(400):
        deep = [deep]
    engine.answering = {"row 1": {"choices": [{"text": "x", "odd": deep}]}}
    deep_row = '{"prompt": "row 2", "logit_bias": ' + "[" * 400 + "]" * 400 + "}"
    lines = [*rows(2), deep_row, {"prompt": "row 3"}]
    summary = await run(spec(write_rows(*lines), output), engine)
    assert (summary.ok, summary.failed) == (2, 2)
    assert codes(output) == [None, "invalid_answer", "invalid_row", None]


async def test_an_endpoint_with_a_wrong_key_is_left_out(write_rows: Write, output: str):
    async with serving(FakeEngine(api_key="right")) as first, serving(FakeEngine(api_key="other")) as second:
        endpoints = [Endpoint(first.url, "right"), Endpoint(second.url, "right")]
        options = spec(write_rows(*rows(50)), output)
        assert (await run_batch_async(options, endpoints)).ok == 50
        assert not second.seen


async def test_an_endpoint_that_comes_back_with_another_model_is_left_out(write_rows: Write, output: str):
    async with serving() as first, serving() as second:
        for engine in (first, second):
            engine.delay = 0.02
        running = asyncio.create_task(
            run(spec(write_rows(*rows(300)), output, max_in_flight=8), first, second)
        )
        await until(lambda: first.seen.total() >= 40)
        await first.stop()
        first.models = ["another"]
        await first.start()
        before = first.seen.total()
        summary = await running
        assert (summary.ok, summary.failed) == (300, 0)
        assert first.seen.total() == before


async def test_a_batch_ends_when_all_endpoints_refuse_it(write_rows: Write, output: str):
    async with serving(FakeEngine(api_key="a")) as first, serving(FakeEngine(model="other")) as second:
        with pytest.raises(BatchInputError, match="can answer no row"):
            await run(spec(write_rows(*rows(5)), output), first, second)


async def test_a_batch_ends_when_no_endpoint_has_answered_for_too_long(
    engine: FakeEngine, write_rows: Write, output: str
):
    engine.refusing = 503
    with pytest.raises(BatchError, match=r"No endpoint answered .* it refuses everything"):
        await run(spec(write_rows(*rows(5)), output, endpoint_timeout_s=0.5), engine)


@pytest.mark.parametrize("bundles", [False, True])
async def test_a_row_that_kills_the_engine_fails_alone(
    engine: FakeEngine, write_rows: Write, output: str, bundles: bool
):
    engine.takes_bundles = bundles
    engine.poison = {"row 17"}
    engine.delay = 0.005
    summary = await run(spec(write_rows(*rows(200)), output), engine)
    assert (summary.ok, summary.failed) == (199, 1)
    assert codes(output)[17] == "engine_died"
    assert engine.deaths <= 8


async def test_the_row_that_kills_the_only_worker_is_remembered_by_the_next_attempt(
    engine: FakeEngine, write_rows: Write, output: str
):
    engine.poison = {"row 17"}
    engine.delay = 0.005
    options = spec(write_rows(*rows(100)), output)
    for _ in range(20):
        deaths = engine.deaths
        try:
            summary = await run_batch_async(
                options,
                [Endpoint(engine.url)],
                should_stop=lambda before=deaths: _lost(output, engine, before),
            )
            break
        except BatchError:
            pass
        await until(lambda: engine.url and not engine.restarting)
    assert (summary.ok, summary.failed) == (99, 1)
    assert codes(output)[17] == "engine_died"
    assert summary.attempts > 1
    assert engine.deaths <= 8


def _lost(output: str, engine: FakeEngine, deaths_before: int) -> bool:
    """As the operator does when the only worker is lost: the batch is stopped once the death is noted."""
    notes = Path(output).with_name(".answers.jsonl.parts") / "suspects.json"
    return engine.deaths > deaths_before and not engine.restarting and notes.exists()


async def test_a_row_that_is_always_beyond_the_rate_limit_fails_alone(
    engine: FakeEngine, write_rows: Write, output: str, monkeypatch: pytest.MonkeyPatch
):
    """As one that asks for more tokens than a minute allows."""
    monkeypatch.setattr("airflow_arcadia.batch.sender.MAX_RETURNS", 4)
    monkeypatch.setattr("airflow_arcadia.batch.row_queue.MAX_RETURNS", 4)
    engine.failing = {"row 3": [429] * 99}
    summary = await run(spec(write_rows(*rows(40)), output), engine)
    assert (summary.ok, summary.failed) == (39, 1)
    assert answers(output)[3]["response"]["status_code"] == 429
