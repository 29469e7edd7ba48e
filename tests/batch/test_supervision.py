"""No background task dies in silence: its error ends the batch."""

import asyncio
from collections.abc import Callable

import pytest

from airflow_arcadia.batch import BatchSpec, Endpoint, Progress, run_batch_async, runner
from airflow_arcadia.batch.output.writer import SegmentWriter
from airflow_arcadia.batch.supervision import end_tasks, supervised
from airflow_arcadia.batch.transport import hang_detector
from airflow_arcadia.batch.transport.bundles import BundlingClient
from airflow_arcadia.batch.transport.server import Server
from tests.batch.fake_engine import FakeEngine
from tests.batch.reading import until

Write = Callable[..., str]


class Fault(Exception):
    """What goes wrong."""


def fail(*_: object, **__: object) -> None:
    raise Fault


async def fail_later(*_: object, **__: object) -> None:
    raise Fault


@pytest.fixture
def spec(engine: FakeEngine, write_rows: Write, output: str) -> BatchSpec:
    """A batch that would not end by itself."""
    engine.held = asyncio.Event()
    rows = [{"prompt": f"row {number}"} for number in range(20)]
    return BatchSpec(write_rows(*rows), output, "tiny", segment_seconds=0.1, hang_timeout_s=0.5)


async def test_an_error_is_handed_over_and_a_cancellation_is_not():
    errors: list[BaseException] = []
    supervised(fail_later(), errors.append)
    forever = supervised(asyncio.sleep(60), errors.append)
    await until(lambda: bool(errors))
    await end_tasks([forever])
    assert [type(error) for error in errors] == [Fault]


async def test_an_error_of_the_wish_to_stop_ends_the_batch(engine: FakeEngine, spec: BatchSpec):
    calls = 0

    def should_stop() -> bool:
        nonlocal calls
        calls += 1
        if engine.running:
            raise Fault
        return False

    with pytest.raises(Fault):
        await run_batch_async(spec, [Endpoint(engine.url)], should_stop=should_stop)
    assert calls


@pytest.mark.parametrize(
    "fault",
    [
        (SegmentWriter, "tick", fail),
        (BundlingClient, "expire", fail),
        (hang_detector, "count_tokens", fail),
        (runner, "watch", fail_later),
        (Server, "_list_models", fail_later),
    ],
    ids=lambda fault: fault[1],
)
async def test_an_error_in_what_accompanies_the_rows_ends_the_batch(
    engine: FakeEngine, spec: BatchSpec, monkeypatch: pytest.MonkeyPatch, fault: tuple[object, str, object]
):
    monkeypatch.setattr(*fault)
    with pytest.raises(Fault):
        await asyncio.wait_for(run_batch_async(spec, [Endpoint(engine.url)]), 15)


async def test_an_error_while_a_bundle_is_sent_ends_the_batch(
    engine: FakeEngine, spec: BatchSpec, monkeypatch: pytest.MonkeyPatch
):
    engine.takes_bundles = True
    monkeypatch.setattr("airflow_arcadia.batch.transport.bundles.pack", fail)
    with pytest.raises(Fault):
        await asyncio.wait_for(run_batch_async(spec, [Endpoint(engine.url)]), 15)


async def test_an_error_while_a_death_is_settled_ends_the_batch(
    engine: FakeEngine, spec: BatchSpec, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("airflow_arcadia.batch.row_queue.RowQueue.blame", fail)
    running = asyncio.create_task(run_batch_async(spec, [Endpoint(engine.url)]))
    await until(lambda: engine.running == 20)
    engine.die()
    with pytest.raises(Fault):
        await asyncio.wait_for(running, 20)


async def test_an_error_of_whoever_hears_the_progress_does_not(engine: FakeEngine, spec: BatchSpec):
    heard: list[Progress] = []

    def hear(progress: Progress) -> None:
        heard.append(progress)
        if engine.held is not None and len(heard) > 2:
            engine.held.set()
        raise Fault

    summary = await run_batch_async(spec, [Endpoint(engine.url)], on_progress=hear, progress_interval_s=0.1)
    assert summary.ok == 20
