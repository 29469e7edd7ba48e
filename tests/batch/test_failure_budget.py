"""How many rows may fail, in this attempt and in the ones after it."""

from collections.abc import Callable
from typing import Any

import pytest

from airflow_arcadia.batch import BatchSpec, Endpoint, run_batch_async
from airflow_arcadia.batch.failure_budget import TooManyFailedRowsError, exceeded
from airflow_arcadia.batch.output.segments import Counts
from tests.batch.fake_engine import FakeEngine

Write = Callable[..., str]


def over(ok: int, failed: int, rows: int, **options: Any) -> bool:
    spec = BatchSpec("in", "out", "m", **options)
    return exceeded(spec, Counts(ok=ok, failed=failed), rows) is not None


def test_a_limit_counts_all_failed_rows():
    assert not over(0, 2, 10, max_failed_rows=2)
    assert over(7, 3, 10, max_failed_rows=2)
    assert over(0, 1, 10, max_failed_rows=0)


def test_a_share_is_taken_of_all_rows_as_it_is_written():
    assert not over(0, 29, 100, max_failed_fraction=0.29)
    assert over(0, 30, 100, max_failed_fraction=0.29)


def test_a_batch_without_limits_may_fail_in_part_and_not_in_all_of_its_first_rows():
    assert not over(1, 900, 1000)
    assert not over(0, 99, 1000)
    assert over(0, 100, 1000)
    assert over(0, 7, 7)
    assert not over(0, 1000, 1000, max_failed_fraction=1.0)


async def test_a_batch_all_of_whose_rows_fail_is_not_green(
    engine: FakeEngine, write_rows: Write, output: str
):
    engine.models.append("served")
    rows = [{"prompt": f"row {number}", "model": "Ford Fiesta"} for number in range(300)]
    spec = BatchSpec(write_rows(*rows), output, "tiny", max_in_flight=16)
    with pytest.raises(TooManyFailedRowsError, match="All of the first 100 rows have failed") as ended:
        await run_batch_async(spec, [Endpoint(engine.url)])
    assert not ended.value.retryable
    assert engine.seen.total() <= 100 + 16


async def test_a_retry_does_not_undo_the_budget(engine: FakeEngine, write_rows: Write, output: str):
    rows = [{"prompt": "good"}, {"prompt": "x", "url": "/nowhere"}]
    spec = BatchSpec(write_rows(*rows), output, "tiny", max_failed_rows=0)
    for _ in range(3):
        with pytest.raises(TooManyFailedRowsError, match="more than the 0 allowed"):
            await run_batch_async(spec, [Endpoint(engine.url)])
    assert engine.seen["good"] <= 1
    allowed = BatchSpec(**{**spec.to_dict(), "max_failed_rows": 1})
    assert (await run_batch_async(allowed, [Endpoint(engine.url)])).failed == 1
