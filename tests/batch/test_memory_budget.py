"""Rows in flight are bounded in bytes, not only in number."""

import asyncio
from collections.abc import Callable

from airflow_arcadia.batch import BatchSpec, Endpoint, run_batch_async
from airflow_arcadia.batch.memory_budget import ByteBudget, default_bytes_in_flight
from airflow_arcadia.batch.openai_format import MAX_LINE_BYTES
from tests.batch.fake_engine import FakeEngine

Write = Callable[..., str]


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_bytes_are_held_first_come_first_served():
    budget = ByteBudget(100)
    await budget.acquire(60)
    large = asyncio.create_task(budget.acquire(70))
    small = asyncio.create_task(budget.acquire(10))
    await settle()
    # The small one fits, and does not overtake: the large one would never come to its turn.
    assert not large.done()
    assert not small.done()
    budget.release(60)
    await settle()
    assert large.done()
    assert small.done()


async def test_what_is_larger_than_all_is_let_through_alone():
    budget = ByteBudget(100)
    await budget.acquire(1000)
    other = asyncio.create_task(budget.acquire(1))
    await settle()
    assert not other.done()
    budget.release(1000)
    await other


async def test_who_is_cancelled_holds_nothing():
    budget = ByteBudget(100)
    await budget.acquire(100)
    waiting = [asyncio.create_task(budget.acquire(100)) for _ in range(2)]
    await settle()
    waiting[0].cancel()
    budget.release(100)
    await waiting[1]
    waiting.append(asyncio.create_task(budget.acquire(100)))
    await settle()
    budget.release(100)
    # Cancelled in the very moment it got its bytes.
    waiting[2].cancel()
    await settle()
    await asyncio.wait_for(budget.acquire(100), 5)


def test_the_default_lets_the_longest_row_through():
    assert default_bytes_in_flight() >= MAX_LINE_BYTES


async def test_large_rows_are_sent_few_at_a_time(engine: FakeEngine, write_rows: Write, output: str):
    engine.delay = 0.01
    rows = [{"prompt": f"row-{number}-" + "x" * 10_000} for number in range(60)]
    spec = BatchSpec(write_rows(*rows), output, "tiny", max_in_flight=32, max_in_flight_bytes=50_000)
    summary = await run_batch_async(spec, [Endpoint(engine.url)])
    assert (summary.ok, summary.failed) == (60, 0)
    assert 2 <= engine.most_running <= 4
