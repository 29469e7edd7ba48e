"""The reaper's operator: every connection that is configured is swept, and what is left is said."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from airflow_arcadia.exceptions import TeardownError
from airflow_arcadia.lease import Identity
from airflow_arcadia.lease_store import LeaseStore
from airflow_arcadia.operators.reaper import ArcadiaReapWorkersOperator
from airflow_arcadia.reap import environment_connection_ids
from tests.airflow_context import make_context


@pytest.fixture
def stores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, LeaseStore]:
    found = {}
    for name in ("one", "two"):
        root = tmp_path / name
        extra = {"arcadia_config_yaml": "rayClusters: []", "state_dir": str(root)}
        connection = json.dumps({"conn_type": "arcadia", "extra": extra})
        monkeypatch.setenv(f"AIRFLOW_CONN_ARCADIA_{name.upper()}", connection)
        found[name] = LeaseStore(root)
    monkeypatch.setenv("AIRFLOW_CONN_OTHER", "http://example.com")
    monkeypatch.setenv("AIRFLOW_CONN_BARE", "arcadia://")
    return found


def context(state: str | Exception) -> dict[str, Any]:
    made = make_context()

    def get_dagrun_state(dag_id: str, run_id: str) -> str:
        if isinstance(state, Exception):
            raise state
        return state

    made["ti"].get_dagrun_state = get_dagrun_state
    return made


def reserve(store: LeaseStore, ago: float) -> str:
    return store.reserve(Identity("dag", f"run-{ago}", "worker"), time.time() - ago, 600).name


def test_every_connection_of_the_environment_is_swept(stores: dict[str, LeaseStore]):
    assert environment_connection_ids() == ["arcadia_one", "arcadia_two", "bare"]
    lapsed, alive = reserve(stores["one"], 5000), reserve(stores["two"], 10)
    operator = ArcadiaReapWorkersOperator(task_id="reap", arcadia_conn_ids=["arcadia_one", "arcadia_two"])
    result = operator.execute(context("running"))
    assert result["arcadia_one"] == {"reaped": [lapsed], "gpu_hours": 0.0}
    assert result["arcadia_two"]["reaped"] == []
    assert (stores["one"].names(), stores["two"].names()) == ([], [alive])


def test_a_run_that_ended_is_swept_and_one_whose_state_is_unknown_is_not(stores: dict[str, LeaseStore]):
    name = reserve(stores["one"], 100)
    operator = ArcadiaReapWorkersOperator(task_id="reap", arcadia_conn_ids=["arcadia_one"])
    assert operator.execute(context(RuntimeError("404")))["arcadia_one"]["reaped"] == []
    assert operator.execute(context("failed"))["arcadia_one"]["reaped"] == [name]


def test_a_report_ends_nothing(stores: dict[str, LeaseStore]):
    name = reserve(stores["one"], 5000)
    operator = ArcadiaReapWorkersOperator(task_id="r", arcadia_conn_ids=["arcadia_one"], report_only=True)
    assert operator.execute(context("running"))["arcadia_one"]["reaped"] == [name]
    assert stores["one"].names() == [name]


def test_a_connection_that_cannot_be_read_fails_the_task_after_the_others_were_swept(
    stores: dict[str, LeaseStore],
):
    reserve(stores["one"], 5000)
    operator = ArcadiaReapWorkersOperator(task_id="reap", arcadia_conn_ids=["nowhere", "arcadia_one"])
    with pytest.raises(TeardownError, match="nowhere: Airflow has no connection"):
        operator.execute(context("running"))
    assert stores["one"].names() == []
