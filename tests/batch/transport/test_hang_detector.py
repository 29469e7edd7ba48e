"""An engine that hangs is told from one that is slow."""

import asyncio
from collections.abc import Callable

import pytest

from airflow_arcadia.batch import BatchSpec, Endpoint, run_batch_async
from airflow_arcadia.batch.transport.hang_detector import Reading, count_tokens, is_hung, look
from airflow_arcadia.exceptions import BatchError
from tests.batch.fake_engine import serving
from tests.batch.reading import until

Write = Callable[..., str]


def is_hung_after(*readings: Reading) -> bool:
    """With a reading every 200 s, and a timeout of 300 s."""
    stall = None
    for number, reading in enumerate(readings):
        stall = look(stall, reading, 200.0 * number)
    return is_hung(stall, 200.0 * (len(readings) - 1), 300)


def counted(tokens: float, answered: int = 0) -> Reading:
    return Reading(responds=True, tokens=tokens, answered=answered)


SILENT = Reading(responds=False, tokens=None, answered=0)
UNCOUNTED = Reading(responds=True, tokens=None, answered=0)


def test_a_slow_engine_moves_its_count_and_a_hung_one_does_not():
    assert not is_hung_after(counted(5), counted(5), counted(6))
    assert is_hung_after(counted(5), counted(5), counted(5))


def test_an_answer_is_a_sign_of_life():
    assert not is_hung_after(counted(5), counted(5), counted(5, answered=1))


def test_of_a_server_that_answers_and_counts_nothing_nothing_is_known():
    assert not is_hung_after(UNCOUNTED, UNCOUNTED, UNCOUNTED)


def test_a_server_that_does_not_answer_at_all_hangs():
    assert is_hung_after(SILENT, SILENT, SILENT)
    assert is_hung_after(counted(5), SILENT, SILENT)
    assert not is_hung_after(SILENT, SILENT, UNCOUNTED)


def test_an_engine_that_is_too_busy_to_tell_its_count_once_is_not_forgiven_its_stall():
    assert is_hung_after(counted(5), SILENT, counted(5))
    assert not is_hung_after(counted(5), SILENT, counted(6))


def test_the_count_is_the_sum_over_engines():
    metrics = b"""# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{engine="0",model_name="m"} 10.0
vllm:generation_tokens_total{engine="1",model_name="m"} 1.5e+01
vllm:prompt_tokens_total{engine="0",model_name="m"} 5.0
vllm:generation_tokens_created{engine="0",model_name="m"} 1.7e+09
"""
    assert count_tokens(metrics) == 30.0
    assert count_tokens(b"process_cpu_seconds_total 1.0\n") is None


async def test_the_rows_of_a_hung_engine_go_to_another(write_rows: Write, output: str):
    async with serving() as hung, serving() as sound:
        hung.held = asyncio.Event()
        rows = [{"prompt": f"row {row}"} for row in range(40)]
        options = {"max_in_flight": 8, "hang_timeout_s": 0.5}
        spec = BatchSpec(write_rows(*rows), output, "tiny", **options)
        summary = await run_batch_async(spec, [Endpoint(hung.url), Endpoint(sound.url)])
        assert (summary.ok, summary.failed) == (40, 0)
        assert hung.seen.total() >= 8


async def test_an_engine_that_hangs_for_a_while_is_waited_for(write_rows: Write, output: str):
    async with serving() as engine:
        engine.held = asyncio.Event()
        spec = BatchSpec(write_rows({"prompt": "one"}), output, "tiny", hang_timeout_s=0.5)
        running = asyncio.create_task(run_batch_async(spec, [Endpoint(engine.url)]))
        # It is asked to prove itself.
        await until(lambda: engine.probes == 1)
        engine.held.set()
        assert (await running).ok == 1


async def test_an_engine_that_hangs_for_good_is_named(write_rows: Write, output: str):
    async with serving() as engine:
        engine.held = asyncio.Event()
        spec = BatchSpec(
            write_rows({"prompt": "one"}), output, "tiny", hang_timeout_s=0.5, endpoint_timeout_s=1.0
        )
        with pytest.raises(BatchError, match=r"it hangs: no token for 0\.5 s with 1 rows in flight"):
            await run_batch_async(spec, [Endpoint(engine.url)])


@pytest.mark.parametrize("bundles", [False, True])
async def test_the_rows_of_a_frozen_endpoint_go_to_another(write_rows: Write, output: str, bundles: bool):
    """It answers nothing, neither rows nor metrics nor models, and resets no connection."""
    async with serving() as frozen, serving() as sound:
        frozen.takes_bundles = sound.takes_bundles = bundles
        frozen.delay = sound.delay = 0.02
        rows = [{"prompt": f"row {row}"} for row in range(100)]
        options = {"max_in_flight": 8, "hang_timeout_s": 0.5, "request_timeout_s": 60.0}
        spec = BatchSpec(write_rows(*rows), output, "tiny", **options)
        began = asyncio.get_running_loop().time()
        running = asyncio.create_task(run_batch_async(spec, [Endpoint(frozen.url), Endpoint(sound.url)]))
        await until(lambda: frozen.running > 0)
        frozen.frozen = True
        frozen.held = asyncio.Event()
        summary = await running
        assert (summary.ok, summary.failed) == (100, 0)
        assert asyncio.get_running_loop().time() - began < 30.0
        frozen.frozen = False


async def test_a_slow_engine_is_left_alone(write_rows: Write, output: str):
    async with serving() as engine:
        engine.delay = 1.2

        async def generate() -> None:
            while True:
                engine.tokens += 1
                await asyncio.sleep(0.05)

        generating = asyncio.create_task(generate())
        spec = BatchSpec(write_rows({"prompt": "one"}), output, "tiny", hang_timeout_s=0.5)
        summary = await run_batch_async(spec, [Endpoint(engine.url)])
        generating.cancel()
        assert summary.ok == 1
        assert engine.seen["one"] == 1
