"""What the page reads from Airflow's own database: tasks, what they returned, the audit log."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from airflow.models.log import Log
from airflow.models.taskinstance import TaskInstance
from airflow.models.xcom import XComModel
from airflow.utils.session import create_session
from sqlalchemy import and_, or_, select

from airflow_arcadia.ui.view import Task

BATCH_OPERATOR = "ArcadiaBatchInferenceOperator"
LAUNCH_OPERATOR = "ArcadiaLaunchWorkerOperator"
LATEST = 50
"""Batches shown, the latest first."""


def batch_tasks(limit: int = LATEST) -> list[Task]:
    """The latest batch tasks that have started."""
    query = (
        select(TaskInstance)
        .where(TaskInstance.operator == BATCH_OPERATOR, TaskInstance.start_date.is_not(None))
        .order_by(TaskInstance.start_date.desc())
        .limit(limit)
    )
    return _tasks(query)


def batch_task(dag_id: str, run_id: str, task_id: str, map_index: int) -> Task | None:
    """One batch task."""
    query = select(TaskInstance).where(
        TaskInstance.dag_id == dag_id,
        TaskInstance.run_id == run_id,
        TaskInstance.task_id == task_id,
        TaskInstance.map_index == map_index,
        TaskInstance.operator == BATCH_OPERATOR,
    )
    return next(iter(_tasks(query)), None)


def run_tasks(runs: Iterable[tuple[str, str]]) -> list[Task]:
    """Every task of those runs, by DAG id and run id."""
    wanted = [and_(TaskInstance.dag_id == dag, TaskInstance.run_id == run) for dag, run in runs]
    return _tasks(select(TaskInstance).where(or_(*wanted))) if wanted else []


def write_audit_log(
    event: str, owner: str, extra: Mapping[str, Any], dag_id: str | None, run_id: str | None
) -> None:
    """Record in Airflow's audit log what a person did."""
    with create_session() as session:
        session.add(
            Log(event=event, owner=owner, extra=json.dumps(dict(extra)), dag_id=dag_id, run_id=run_id)
        )


def _tasks(query: Any) -> list[Task]:
    with create_session() as session:
        found = list(session.scalars(query))
        with_values = [ti for ti in found if ti.operator in {BATCH_OPERATOR, LAUNCH_OPERATOR}]
        values = _values(session, with_values)
        stores = _stores(session, [ti for ti in found if ti.operator == BATCH_OPERATOR])
        return [
            Task(
                dag_id=ti.dag_id,
                run_id=ti.run_id,
                task_id=ti.task_id,
                map_index=ti.map_index,
                operator=ti.operator or "",
                state=str(ti.state) if ti.state else None,
                started_at=ti.start_date.timestamp() if ti.start_date else None,
                ended_at=ti.end_date.timestamp() if ti.end_date else None,
                try_number=ti.try_number or 0,
                value=values.get(_key(ti)),
                store=stores.get(_key(ti), {}),
            )
            for ti in found
        ]


def _key(row: Any) -> tuple[str, str, str, int]:
    return row.dag_id, row.run_id, row.task_id, row.map_index


def _values(session: Any, tasks: list[Any]) -> dict[tuple[str, str, str, int], Any]:
    """What the tasks returned. A custom XCom backend's references are left out: they are not the value."""
    if not tasks:
        return {}
    runs = {(ti.dag_id, ti.run_id) for ti in tasks}
    wanted = or_(*(and_(XComModel.dag_id == dag, XComModel.run_id == run) for dag, run in runs))
    found = {}
    for row in session.scalars(select(XComModel).where(XComModel.key == "return_value", wanted)):
        value = row.value
        with contextlib.suppress(ValueError, TypeError):
            value = json.loads(value) if isinstance(value, str) else value
        found[_key(row)] = value if isinstance(value, dict) else None
    return found


def _stores(session: Any, tasks: list[Any]) -> dict[tuple[str, str, str, int], dict[str, Any]]:
    """The task state stores (Airflow 3.3 and later)."""
    try:
        from airflow.models.task_state_store import TaskStateStoreModel as Model  # noqa: PLC0415
    except ImportError:
        return {}
    if not tasks:
        return {}
    runs = {(ti.dag_id, ti.run_id) for ti in tasks}
    wanted = or_(*(and_(Model.dag_id == dag, Model.run_id == run) for dag, run in runs))
    found: dict[tuple[str, str, str, int], dict[str, Any]] = {}
    for row in session.scalars(select(Model).where(wanted)):
        with contextlib.suppress(ValueError):
            found.setdefault(_key(row), {})[row.key] = json.loads(row.value)
    return found
