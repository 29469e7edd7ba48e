"""A run that failed without its teardown has what is left of it ended, by a process of its own."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import DAG

from airflow_arcadia.listeners import reaping, runs
from airflow_arcadia.operators.worker import ArcadiaReserveWorkerOperator
from tests.conftest import wait_for


@pytest.fixture
def reaped(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    monkeypatch.setattr(reaping, "_reap", found.append)
    return found


def run_of(*tasks: str) -> Any:
    dag = SimpleNamespace(tasks=[SimpleNamespace(task_type=task) for task in tasks])
    return SimpleNamespace(dag_id="d", run_id="r", dag=dag)


def test_a_run_that_timed_out_is_reaped(reaped: list[tuple[str, ...]]):
    runs.on_dag_run_failed(run_of("EmptyOperator", runs.RESERVE), "timed_out")
    wait_for(lambda: reaped, 5, "the process")
    (arguments,) = reaped
    assert arguments[:4] == ("--dag-id", "d", "--run-id", "r")


@pytest.mark.parametrize(
    ("run", "msg"),
    [
        (run_of("EmptyOperator"), "timed_out"),
        (SimpleNamespace(dag_id="d", run_id="r"), "timed_out"),
        (SimpleNamespace(dag_id="d", run_id="r", dag=None), "timed_out"),
    ],
)
def test_other_runs_start_nothing(run: Any, msg: str, reaped: list[tuple[str, ...]]):
    before = threading.active_count()
    runs.on_dag_run_failed(run, msg)
    assert (threading.active_count(), reaped) == (before, [])


def test_the_operators_name_is_the_one_it_looks_for():
    with DAG("d", schedule=None) as dag:
        ArcadiaReserveWorkerOperator(task_id="reserve")
    assert runs.has_workers(dag)
