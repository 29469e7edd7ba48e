"""A user's own long task keeps the worker around it alive; other tasks have nothing to do with it."""

from __future__ import annotations

import os
import threading
import time
from types import SimpleNamespace

import pytest
from airflow.sdk import DAG
from airflow.sdk.bases.operator import BaseOperator

from airflow_arcadia.lease import Identity, Lease
from airflow_arcadia.lease_store import LeaseStore
from airflow_arcadia.listeners import reaping, tasks
from airflow_arcadia.task_groups.worker import ArcadiaWorkerGroup
from tests.airflow_context import set_connection
from tests.conftest import wait_for


@pytest.fixture(autouse=True)
def _connection(monkeypatch: pytest.MonkeyPatch, store: LeaseStore) -> None:
    set_connection(monkeypatch, arcadia_config_yaml="rayClusters: []", state_dir=str(store.root))


@pytest.fixture
def dag() -> DAG:
    with DAG("dag", schedule=None) as dag:
        first = BaseOperator(task_id="first")
        with ArcadiaWorkerGroup("worker", model="org/m") as worker:
            BaseOperator(task_id="long")
        with ArcadiaWorkerGroup("second", model="org/m") as second:
            BaseOperator(task_id="other")
        last = BaseOperator(task_id="last")
        first >> worker >> second >> last
    return dag


def leases_of(dag: DAG, task_id: str) -> list[str]:
    return [reserve.group for reserve in tasks.reserved_for(dag.get_task(task_id))]


@pytest.mark.parametrize(
    ("task_id", "groups"),
    [
        ("worker.long", ["worker"]),
        ("worker.provision_ray_cluster", ["worker"]),
        ("worker.launch_worker", ["worker"]),
        ("second.other", ["second"]),
        ("first", []),
        ("last", []),
        ("worker.reserve", []),
        ("worker.model_ready", []),
        ("worker.teardown_worker", []),
    ],
)
def test_a_task_renews_the_lease_of_the_worker_around_it_alone(dag: DAG, task_id: str, groups: list[str]):
    assert leases_of(dag, task_id) == groups


def instance(dag: DAG, task_id: str, lease: Lease, map_index: int = -1) -> SimpleNamespace:
    run_id = lease.identity.run_id
    return SimpleNamespace(task=dag.get_task(task_id), dag_id="dag", run_id=run_id, map_index=map_index)


@pytest.mark.parametrize("map_index", [-1, 3])
def test_its_lease_is_renewed_until_the_task_ends(dag: DAG, store: LeaseStore, lease: Lease, map_index: int):
    store.update(lease.name, lambda held: Lease(held.name, held.identity, 1.0, 1.0, 0.05))

    def renewed_after(at: float) -> bool:
        held = store.read(lease.name)
        return held is not None and held.renewed_at > at

    tasks.on_task_instance_running(None, instance(dag, "worker.long", lease, map_index))
    wait_for(lambda: renewed_after(1.0), 10, "a renewal")
    seen = time.time()
    wait_for(lambda: renewed_after(seen), 10, "another one")
    tasks.on_task_instance_success(None, None)
    assert not tasks._keepers


def test_a_task_that_lost_its_supervisor_renews_nothing_any_more(
    dag: DAG,
    store: LeaseStore,
    lease: Lease,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    parent = [os.getppid()]
    monkeypatch.setattr(tasks, "_LOOK_S", 0.05)
    monkeypatch.setattr(tasks.os, "getppid", lambda: parent[0])
    with caplog.at_level("INFO", logger=tasks.__name__):
        tasks.on_task_instance_running(None, instance(dag, "worker.long", lease))
        wait_for(lambda: (store.read(lease.name) or lease).renewed_at > lease.renewed_at, 10, "a renewal")
        parent[0] = 1
        wait_for(lambda: "what supervised this task is gone" in caplog.text, 10, "the end of the renewals")
    tasks.on_task_instance_success(None, None)


def test_a_mapped_group_has_a_lease_for_each_index(dag: DAG, store: LeaseStore, lease: Lease):
    mapped = store.reserve(Identity("dag", lease.identity.run_id, "worker", 3), 1.0)
    tasks.on_task_instance_running(None, instance(dag, "worker.long", lease, 3))
    wait_for(lambda: (store.read(mapped.name) or mapped).renewed_at > 1.0, 10, "a renewal")
    tasks.on_task_instance_failed(None, None, None)


def test_without_a_lease_or_a_connection_the_task_just_runs(
    dag: DAG, store: LeaseStore, lease: Lease, monkeypatch: pytest.MonkeyPatch
):
    store.remove(lease.name)
    tasks.on_task_instance_running(None, instance(dag, "worker.long", lease))
    monkeypatch.delenv("AIRFLOW_CONN_ARCADIA_DEFAULT")
    tasks.on_task_instance_running(None, instance(dag, "worker.long", lease))
    tasks.on_task_instance_running(None, SimpleNamespace())
    tasks.on_task_instance_failed(None, None, None)
    assert store.names() == []


@pytest.mark.parametrize("ended", ["success", "failed", "skipped"])
def test_what_a_teardown_leaves_that_airflow_itself_ended_is_ended(
    monkeypatch: pytest.MonkeyPatch, ended: str
):
    reaped: list[tuple[str, ...]] = []
    monkeypatch.setattr(reaping, "_reap", reaped.append)
    record = SimpleNamespace(
        operator=tasks.TEARDOWN, dag_id="d", run_id="r", task_id="worker.teardown_worker", map_index=2
    )
    arguments = {"error": None} if ended == "failed" else {}
    getattr(tasks, f"on_task_instance_{ended}")(None, record, **arguments)
    wait_for(lambda: reaped, 5, "the process")
    names = ("--dag-id", "d", "--run-id", "r", "--task-id", "worker.teardown_worker", "--map-index", "2")
    assert [arguments[: len(names)] for arguments in reaped] == [names]


def test_a_teardown_that_ended_by_itself_and_other_tasks_start_nothing(dag: DAG, lease: Lease):
    before = threading.active_count()
    tasks.on_task_instance_success(None, instance(dag, "worker.teardown_worker", lease))
    tasks.on_task_instance_failed(None, SimpleNamespace(operator="BaseOperator"), None)
    assert threading.active_count() == before
