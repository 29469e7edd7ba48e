"""The teardown names what failed, in order, and keeps a failed run red."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import DAG
from airflow.sdk.bases.operator import BaseOperator
from airflow.sdk.exceptions import AirflowFailException

from airflow_arcadia.lease import Lease
from airflow_arcadia.lease_store import LeaseStore
from airflow_arcadia.listeners import run_marks
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


def teardown(
    monkeypatch: pytest.MonkeyPatch,
    store: LeaseStore,
    lease: Lease,
    run_state: Any,
    answer: str = "success",
    **context_of: Any,
) -> None:
    set_connection(monkeypatch, arcadia_config_yaml="rayClusters: []", state_dir=str(store.root))
    with DAG("dag", schedule=None):
        reserve = ArcadiaReserveWorkerOperator(task_id="reserve")
        work = BaseOperator(task_id="answer")
        operator = ArcadiaTeardownWorkerOperator(task_id="teardown", lease=lease.name, grace=5)
        reserve >> [work, operator]
        work >> operator
    context = make_context(answer=answer)
    context["ti"].get_dagrun_state = run_state
    if "marked" in context_of:
        context["dag_run"] = SimpleNamespace(clear_number=1)
        context["ti"].xcom_pull = context_of["marked"]
    operator.execute(context)


def mark(text: str) -> Any:
    """What the reserve task's XCom of the mark holds."""

    def xcom_pull(*, task_ids: list[str], key: str) -> list[str | None]:
        return [text] if (task_ids, key) == (["reserve"], run_marks.KEY) else [None]

    return xcom_pull


def test_a_run_that_was_marked_failed_during_its_teardown_ends_failed(
    monkeypatch: pytest.MonkeyPatch, store: LeaseStore, lease: Lease
):
    with pytest.raises(AirflowFailException, match=r"nothing is left running; the run was marked failed"):
        teardown(monkeypatch, store, lease, lambda *_: "running", marked=mark("failed 1"))
    assert store.names() == []


def test_a_run_that_was_marked_successful_during_its_teardown_is_not_failed_by_its_tasks(
    monkeypatch: pytest.MonkeyPatch, store: LeaseStore, lease: Lease
):
    teardown(monkeypatch, store, lease, lambda *_: "running", "failed", marked=mark("success 1"))
    assert store.names() == []


@pytest.mark.parametrize("marked", [mark("failed 0"), lambda **_: unreadable()])
def test_a_mark_of_before_the_clearing_or_one_that_cannot_be_read_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, store: LeaseStore, lease: Lease, marked: Any
):
    teardown(monkeypatch, store, lease, lambda *_: "running", marked=marked)
    assert store.names() == []


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
