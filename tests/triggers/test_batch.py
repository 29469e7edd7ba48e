"""The batch trigger: it polls, tells a dead worker from a silent one, and never waits for ever."""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from airflow_arcadia.exceptions import WorkerLostError
from airflow_arcadia.hooks.arcadia import ArcadiaHook
from airflow_arcadia.kubernetes.errors import unreachable
from airflow_arcadia.launchers.base import Credentials
from airflow_arcadia.lease import Lease
from airflow_arcadia.lease_store import LeaseStore
from airflow_arcadia.processes import mark, spawn
from airflow_arcadia.triggers import batch
from airflow_arcadia.triggers.batch import ArcadiaBatchInferenceTrigger
from airflow_arcadia.worker import WorkerHandle
from tests.airflow_context import set_connection

SUMMARY = {"rows": 3, "ok": 3}
RUNNING = {"status": "in_progress"}


class FakeBatches:
    """Answers questions about a batch in order, the last again and again."""

    def __init__(self) -> None:
        self.answers: list[Any] = [RUNNING]
        self.calls: list[str] = []
        self.url = ""

    async def answer(self, request: web.Request) -> web.Response:
        self.calls.append(f"{request.method} {request.path_qs}")
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, int):
            return web.Response(status=answer, text="{}" if answer == 404 else "no JSON")
        return web.json_response(answer)


@pytest.fixture
async def batches() -> AsyncIterator[FakeBatches]:
    fake = FakeBatches()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", fake.answer)
    async with TestServer(app) as server:
        fake.url = str(server.make_url("")).rstrip("/")
        yield fake


@pytest.fixture(autouse=True)
def _connection(monkeypatch: pytest.MonkeyPatch, store: LeaseStore) -> None:
    set_connection(monkeypatch, arcadia_config_yaml="rayClusters: []", state_dir=str(store.root))


def trigger(
    store: LeaseStore, lease: Lease, url: str, code: str = "", **more: Any
) -> ArcadiaBatchInferenceTrigger:
    log = store.directory(lease.name) / "w.log"
    code = code or "import time; time.sleep(600)"
    ref = spawn([sys.executable, "-c", code], env=mark(lease.name, "worker/w"), log_path=log)
    where = {"pid": ref.pid, "started_at": ref.started_at, "log": str(log)}
    handle = WorkerHandle("w", lease.name, "process", url, "tiny", 1, where=where)
    return ArcadiaBatchInferenceTrigger(handle.to_dict(), "batch_1", "arcadia_default", 0.01, **more)


async def fire(waiting: ArcadiaBatchInferenceTrigger) -> dict[str, Any]:
    async with asyncio.timeout(20):
        return dict((await waiting.wait()).payload)


async def test_a_batch_that_is_done_gives_its_summary_and_its_lease_was_renewed(
    batches: FakeBatches, store: LeaseStore, lease: Lease
):
    batches.answers = [RUNNING, 503, RUNNING, {"status": "completed", "summary": SUMMARY}]
    event = await fire(trigger(store, lease, batches.url))
    assert event == {"summary": SUMMARY, "failed": None, "retryable": False}
    held = store.read(lease.name)
    assert held is not None
    assert held.renewed_at > lease.renewed_at


@pytest.mark.parametrize("times", [0, 2])
async def test_a_worker_that_was_started_anew_and_does_not_know_the_batch_is_told_from_a_refusal(
    batches: FakeBatches, store: LeaseStore, lease: Lease, times: int
):
    batches.answers = [RUNNING, 404]
    event = await fire(trigger(store, lease, batches.url, resubmitted=times))
    assert "was started anew" in event["failed"]
    assert (event["retryable"], event["resubmitted"]) == (True, times)


async def test_a_worker_that_lives_but_never_answers_is_not_waited_for_for_ever(
    batches: FakeBatches, store: LeaseStore, lease: Lease
):
    batches.answers = [500]
    event = await fire(trigger(store, lease, batches.url, unreachable_timeout=0.2))
    assert "No answer about batch_1 for 0 s" in event["failed"]
    assert event["retryable"]
    assert len(batches.calls) > 3


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch) -> list[Exception]:
    """What reading the worker's key raises, one after the other, before it can be read."""
    errors: list[Exception] = []
    read = ArcadiaHook.credentials

    async def credentials(self: ArcadiaHook, handle: WorkerHandle) -> Credentials:
        if errors:
            raise errors.pop(0)
        return await read(self, handle)

    monkeypatch.setattr(ArcadiaHook, "credentials", credentials)
    return errors


async def test_a_key_that_cannot_be_read_for_a_while_is_waited_for(
    batches: FakeBatches, store: LeaseStore, lease: Lease, away: list[Exception]
):
    away += [unreachable("no answer")] * 3
    batches.answers = [{"status": "completed", "summary": SUMMARY}]
    assert (await fire(trigger(store, lease, batches.url)))["summary"] == SUMMARY


async def test_a_key_that_cannot_be_read_for_long_fails_this_attempt_alone(
    batches: FakeBatches, store: LeaseStore, lease: Lease, away: list[Exception]
):
    away += [unreachable("no answer")] * 1000
    event = await fire(trigger(store, lease, batches.url, unreachable_timeout=0.1))
    assert "The Kubernetes API cannot be reached" in event["failed"]
    assert event["retryable"]
    assert batches.calls == [], "nobody is asked without the key"


async def test_a_key_that_is_gone_ends_the_wait(
    batches: FakeBatches, store: LeaseStore, lease: Lease, away: list[Exception]
):
    away.append(WorkerLostError("The Secret is gone.", what_to_do="Clear the run."))
    event = await fire(trigger(store, lease, batches.url))
    assert (event["failed"], event["retryable"]) == ("The Secret is gone.\nClear the run.", False)


async def test_answers_in_between_count_the_silence_anew(
    batches: FakeBatches, store: LeaseStore, lease: Lease, monkeypatch: pytest.MonkeyPatch
):
    # Every look at the clock is a second later than the one before.
    monkeypatch.setattr(batch, "time", SimpleNamespace(monotonic=itertools.count().__next__))
    batches.answers = [*[500, RUNNING] * 30, {"status": "completed", "summary": SUMMARY}]
    event = await fire(trigger(store, lease, batches.url, unreachable_timeout=2.0))
    assert event["summary"] == SUMMARY


async def test_a_worker_that_is_dead_is_named_with_its_cause(
    batches: FakeBatches, store: LeaseStore, lease: Lease
):
    batches.answers = [500]
    event = await fire(trigger(store, lease, batches.url, "raise MemoryError('rank 1 was killed')"))
    assert "MemoryError: rank 1 was killed" in event["failed"]
    assert "Clear the run from its reserve task" in event["failed"]
    assert not event["retryable"]


async def test_a_lease_that_is_gone_ends_the_wait_unless_the_batch_is_done(
    batches: FakeBatches, store: LeaseStore, lease: Lease
):
    waiting = trigger(store, lease, batches.url)
    store.file(lease.name).unlink()
    assert "does not exist" in (await fire(waiting))["failed"]
    batches.answers = [{"status": "completed", "summary": SUMMARY}]
    assert (await fire(waiting))["summary"] == SUMMARY


async def test_a_users_kill_cancels_the_batch_and_a_restart_of_the_triggerer_does_not(
    batches: FakeBatches, store: LeaseStore, lease: Lease
):
    waiting = trigger(store, lease, batches.url, submission="ours")
    running = asyncio.ensure_future(fire(waiting))
    while not batches.calls:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await waiting.cleanup()  # type: ignore[no-untyped-call]
    assert not any(call.startswith("POST") for call in batches.calls)
    held = store.read(lease.name)
    assert held is not None
    assert not held.released
    await waiting.on_kill()
    assert batches.calls[-1] == "POST /v1/batches/batch_1/cancel?submission=ours"
    batches.answers = [500]
    await waiting.on_kill()  # the worker may be gone already


def test_it_survives_serialisation(store: LeaseStore, lease: Lease):
    path, arguments = trigger(store, lease, "http://127.0.0.1:1", unreachable_timeout=5.0).serialize()
    assert path == "airflow_arcadia.triggers.batch.ArcadiaBatchInferenceTrigger"
    assert ArcadiaBatchInferenceTrigger(**arguments).serialize() == (path, arguments)
