"""Run operators without a database: a context, a task state store and a connection by environment."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

RUN_ID = f"manual__{uuid.uuid4().hex}"
"""Run of :func:`make_context`, one for each process: runs name leases, and leases name processes to end."""


class DictStore(dict[str, Any]):
    """The task state store's calls, on a dict."""

    def set(self, key: str, value: Any, **kwargs: Any) -> None:
        """Keep a value, if it can be kept: Airflow stores JSON."""
        self[key] = json.loads(json.dumps(value))

    def delete(self, key: str) -> None:
        """Forget a value."""
        self.pop(key, None)


def make_context(
    run_id: str = RUN_ID,
    dag_id: str = "dag",
    try_number: int = 1,
    conf: Mapping[str, Any] | None = None,
    **states: str,
) -> dict[str, Any]:
    """What ``execute`` gets.

    :param conf: the run's configuration.
    :param states: of the run's tasks, by task id.
    """

    def get_task_states(*, dag_id: str, run_ids: list[str], task_ids: list[str]) -> dict[str, dict[str, str]]:
        return {run: {task: state for task, state in states.items() if task in task_ids} for run in run_ids}

    pushed: dict[str, Any] = {}
    ti = SimpleNamespace(
        dag_id=dag_id,
        run_id=run_id,
        task_id="task",
        map_index=-1,
        try_number=try_number,
        get_task_states=get_task_states,
        pushed=pushed,
        xcom_push=lambda key, value: pushed.update({key: json.loads(json.dumps(value))}),
    )
    dag = SimpleNamespace(dag_id=dag_id)
    run = SimpleNamespace(conf=dict(conf or {}))
    return {"ti": ti, "run_id": run_id, "dag": dag, "dag_run": run, "task_state_store": DictStore()}


def set_connection(monkeypatch: pytest.MonkeyPatch, password: str | None = None, **extra: Any) -> None:
    """The ``arcadia_default`` connection of this test."""
    connection = {"conn_type": "arcadia", "extra": extra}
    if password:
        connection["password"] = password
    monkeypatch.setenv("AIRFLOW_CONN_ARCADIA_DEFAULT", json.dumps(connection))
