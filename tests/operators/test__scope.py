"""The teardown names what failed, in order, and keeps a failed run red."""

from __future__ import annotations

from typing import Any

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowFailException

from airflow_arcadia.lease import Lease
from airflow_arcadia.lease_store import LeaseStore
from airflow_arcadia.operators._scope import failed_first
from airflow_arcadia.operators.worker import ArcadiaReserveWorkerOperator, ArcadiaTeardownWorkerOperator
from tests.airflow_context import make_context, set_connection

ORDER = ["reserve", "launch", "ready", "answer"]


@pytest.mark.parametrize(
    ("states", "named"),
    [
        ({"launch": "failed", "ready": "upstream_failed", "answer": "upstream_failed"}, ["launch"]),
        ({"answer": "failed", "ready": "failed"}, ["ready", "answer"]),
        ({"ready": "upstream_failed", "answer": "upstream_failed"}, ["ready", "answer"]),
        ({"answer_1": "failed", "answer_0": "success", "launch": "failed"}, ["launch", "answer_1"]),
        ({"answer": "success", "ready": "skipped"}, []),
    ],
)
def test_only_tasks_that_failed_are_named_the_first_one_first(states: dict[str, str], named: list[str]):
    context = make_context()
    context["ti"].get_task_states = lambda **_: {context["run_id"]: states}
    assert failed_first(context, ORDER) == named  # type: ignore[arg-type]


def teardown(monkeypatch: pytest.MonkeyPatch, store: LeaseStore, lease: Lease, run_state: Any) -> None:
    set_connection(monkeypatch, arcadia_config_yaml="rayClusters: []", state_dir=str(store.root))
    with DAG("dag", schedule=None):
        work = ArcadiaReserveWorkerOperator(task_id="answer")
        operator = ArcadiaTeardownWorkerOperator(task_id="teardown", lease=lease.name, grace=5)
        work >> operator
    context = make_context(answer="success")
    context["ti"].get_dagrun_state = run_state
    operator.execute(context)


def test_a_run_that_failed_meanwhile_stays_failed(
    monkeypatch: pytest.MonkeyPatch, store: LeaseStore, lease: Lease
):
    with pytest.raises(AirflowFailException, match=r"nothing is left running; the run had failed meanwhile"):
        teardown(monkeypatch, store, lease, lambda *_: "failed")
    assert store.names() == []


def unreadable(*_: str) -> str:
    raise RuntimeError("away")


@pytest.mark.parametrize("state", [lambda *_: "running", lambda *_: "success", unreadable])
def test_a_run_that_goes_on_or_cannot_be_read_is_not_failed(
    monkeypatch: pytest.MonkeyPatch, store: LeaseStore, lease: Lease, state: Any
):
    teardown(monkeypatch, store, lease, state)
    assert store.names() == []
