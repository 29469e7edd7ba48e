"""The model sensor and its trigger: one decision, reached in a slot or in the triggerer."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from airflow.sdk.exceptions import AirflowFailException, AirflowRescheduleException, TaskDeferred

from airflow_arcadia.launchers.process import ProcessLauncher
from airflow_arcadia.lease import Lease
from airflow_arcadia.lease_store import LeaseStore
from airflow_arcadia.sensors.worker import ArcadiaModelReadySensor
from airflow_arcadia.triggers.worker import ArcadiaModelReadyTrigger
from airflow_arcadia.worker import WorkerHandle, WorkerSpec
from tests.airflow_context import make_context, set_connection


@pytest.fixture(autouse=True)
def _connection(monkeypatch: pytest.MonkeyPatch, store: LeaseStore, worker_python: str) -> None:
    config = "rayClusters: []"
    set_connection(
        monkeypatch, arcadia_config_yaml=config, state_dir=str(store.root), worker_python=worker_python
    )


def launch(store: LeaseStore, lease: Lease, worker_python: str, **spec: Any) -> WorkerHandle:
    spec = {"name": lease.name, "model": "org/no-such-model", "extra_args": ("--no-such-flag",), **spec}
    return ProcessLauncher(store, worker_python).launch(WorkerSpec(**spec), lease, ray=None)


def sensor(handle: WorkerHandle, **kwargs: Any) -> ArcadiaModelReadySensor:
    kwargs = {"startup_timeout": 120, "poll_interval": 0.1, **kwargs}
    return ArcadiaModelReadySensor(task_id="ready", worker=handle.to_dict(), **kwargs)


def trigger(handle: WorkerHandle) -> ArcadiaModelReadyTrigger:
    return ArcadiaModelReadyTrigger(
        handle=handle.to_dict(),
        arcadia_conn_id="arcadia_default",
        started_at=time.time(),
        startup_timeout=120,
        poll_interval=0.1,
    )


async def first_event(waiting: ArcadiaModelReadyTrigger) -> dict[str, Any]:
    return dict((await waiting.wait()).payload)


@pytest.mark.engine
def test_a_worker_that_dies_fails_both_with_the_same_words(
    store: LeaseStore, lease: Lease, worker_python: str
):
    handle = launch(store, lease, worker_python)
    with pytest.raises(AirflowFailException, match="--no-such-flag") as poked:
        sensor(handle, deferrable=False).execute(make_context())
    event = asyncio.run(first_event(trigger(handle)))
    assert "ended before it was ready" in str(poked.value)
    assert event["failed"].splitlines()[-1] == str(poked.value).splitlines()[-1]
    with pytest.raises(AirflowFailException, match="--no-such-flag"):
        sensor(handle).execute_complete(make_context(), event)


def test_a_deferred_wait_has_a_time_out_and_survives_serialisation(
    store: LeaseStore, lease: Lease, worker_python: str
):
    handle = launch(store, lease, worker_python)
    with pytest.raises(TaskDeferred) as deferred:
        sensor(handle, deferrable=True).execute(make_context())
    assert deferred.value.timeout is not None
    path, arguments = deferred.value.trigger.serialize()
    assert path == "airflow_arcadia.triggers.worker.ArcadiaModelReadyTrigger"
    assert ArcadiaModelReadyTrigger(**arguments).serialize() == (path, arguments)


def test_execution_timeout_holds_while_the_wait_is_deferred(
    store: LeaseStore, lease: Lease, worker_python: str
):
    handle = launch(store, lease, worker_python)
    with pytest.raises(TaskDeferred) as deferred:
        sensor(handle, deferrable=True, execution_timeout=timedelta(seconds=8)).execute(make_context())
    assert deferred.value.timeout is not None
    assert deferred.value.timeout <= timedelta(seconds=8)


def test_a_rescheduled_wait_counts_from_its_first_look(store: LeaseStore, lease: Lease, worker_python: str):
    handle = launch(store, lease, worker_python)
    context = make_context()
    began = datetime.now(timezone.utc) - timedelta(seconds=1000)
    context["ti"].get_first_reschedule_date = lambda _: began
    again = sensor(handle, deferrable=False, mode="reschedule", startup_timeout=500)
    with pytest.raises(AirflowFailException, match="not ready within 500 s"):
        again.execute(context)
    context["ti"].get_first_reschedule_date = lambda _: None  # a retry is a new wait
    with pytest.raises(AirflowRescheduleException):
        again.execute(context)


def test_a_wait_that_takes_too_long_says_what_it_waited_for(
    store: LeaseStore, lease: Lease, worker_python: str
):
    handle = launch(store, lease, worker_python)
    with pytest.raises(
        AirflowFailException, match=r"not ready within 0 s: still waiting for the worker to serve"
    ):
        sensor(handle, startup_timeout=0).execute(make_context())


async def test_a_wait_for_a_lease_that_is_gone_ends(store: LeaseStore, lease: Lease, worker_python: str):
    handle = launch(store, lease, worker_python)
    store.remove(lease.name)
    assert "does not exist" in (await first_event(trigger(handle)))["failed"]


async def test_all_the_evidence_makes_it_ready_and_renews_the_lease(
    store: LeaseStore, lease: Lease, worker_python: str
):
    """A process that lives and a server that answers as a worker does; end-to-end tests have the real one."""

    async def answer(request: web.Request) -> web.Response:
        return web.json_response(
            {
                "/list_models": {"models": ["m"]},
                "/worker_get_status": {"model_names": ["m"]},
                "/model_details": {"context_length": 512},
                "/v1/completions": {"choices": [{"text": "1"}]},
            }[request.path]
        )

    app = web.Application()
    app.router.add_post("/{path:.*}", answer)
    async with TestServer(app) as server:
        url = str(server.make_url("")).rstrip("/")
        spec = {"served_model_name": "m", "controller_address": url}
        handle = await asyncio.to_thread(launch, store, lease, worker_python, extra_args=(), **spec)
        handle = replace(handle, url=url)
        event = await first_event(trigger(handle))
        poked = await asyncio.to_thread(sensor(handle, deferrable=False).execute, make_context())
    assert event == {"handle": handle.to_dict(), "failed": None}
    assert poked == handle.to_dict()
    renewed = store.read(lease.name)
    assert renewed is not None
    assert renewed.renewed_at > lease.renewed_at


def test_the_workers_own_log_is_in_the_tasks_log_where_it_outlives_the_worker(
    store: LeaseStore, lease: Lease, worker_python: str, capsys: pytest.CaptureFixture[str]
):
    handle = launch(store, lease, worker_python)
    with pytest.raises(AirflowFailException, match="--no-such-flag"):
        sensor(handle, deferrable=False).execute(make_context())
    said = capsys.readouterr().out.splitlines()
    assert [line for line in said if f"[{handle.name}] api_server.py: error: " in line]
    assert not [line for line in said if "[--headless]" in line], "vLLM's usage is longer than the screen"
    first, second, *_ = [line for line in said if "[error" in line]
    assert "The worker ended before it was ready" in first
    assert "--no-such-flag" in first
    assert "It is no longer running." in second
