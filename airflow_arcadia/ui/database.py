"""What the page reads from Airflow's own database: tasks, what they returned, the audit log."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from airflow.models.dagbag import DBDagBag
from airflow.models.dagrun import DagRun
from airflow.models.log import Log
from airflow.models.renderedtifields import RenderedTaskInstanceFields
from airflow.models.taskinstance import TaskInstance, clear_task_instances
from airflow.models.xcom import XComModel
from airflow.utils.session import create_session
from airflow.utils.state import DagRunState, TaskInstanceState
from sqlalchemy import and_, or_, select

from airflow_arcadia.exceptions import ArcadiaConfigError
from airflow_arcadia.operators.batch import BATCH_KEY, PROGRESS_KEY
from airflow_arcadia.ui.retry import Node
from airflow_arcadia.ui.view import BATCH_OPERATOR, LAUNCH_OPERATOR, PROVISION_OPERATOR, RAY_SENSOR, Task

_WITH_VALUES = frozenset({BATCH_OPERATOR, LAUNCH_OPERATOR, PROVISION_OPERATOR, RAY_SENSOR})
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
        with_values = [ti for ti in found if ti.operator in _WITH_VALUES]
        values = _values(session, with_values)
        batches = [ti for ti in found if ti.operator == BATCH_OPERATOR]
        stores = _stores(session, batches)
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


def rendered(dag_id: str, run_id: str, task_id: str, map_index: int) -> Mapping[str, Any]:
    """The task's template fields as they were rendered for its last attempt; empty before it started."""
    query = select(RenderedTaskInstanceFields).where(
        RenderedTaskInstanceFields.dag_id == dag_id,
        RenderedTaskInstanceFields.run_id == run_id,
        RenderedTaskInstanceFields.task_id == task_id,
        RenderedTaskInstanceFields.map_index == map_index,
    )
    with create_session() as session:
        row = session.scalar(query)
        return dict(row.rendered_fields or {}) if row is not None else {}


def mark_failed(dag_id: str, run_id: str, task_id: str, map_index: int) -> bool:
    """Mark a running task as failed, as Airflow's own button does; False where it does not run any more."""
    query = select(TaskInstance).where(
        TaskInstance.dag_id == dag_id,
        TaskInstance.run_id == run_id,
        TaskInstance.task_id == task_id,
        TaskInstance.map_index == map_index,
        TaskInstance.state == TaskInstanceState.RUNNING,
    )
    with create_session() as session:
        instance = session.scalar(query)
        return instance is not None and instance.set_state(TaskInstanceState.FAILED, session=session)


def clear_for_retry(
    dag_id: str,
    run_id: str,
    map_index: int,
    choose: Callable[[Mapping[str, Node], Mapping[str, Sequence[str | None]]], Collection[str]],
    change_conf: Callable[[Mapping[str, Any]], dict[str, Any]],
) -> list[str]:
    """Clear tasks of a run, as Airflow's own *Clear* does, and change the run's configuration with it.

    :param map_index: where it is not -1, mapped tasks are cleared at this index alone.
    :param choose: ids of the tasks to clear, given the DAG of the run and the states of its task instances.
        What it raises leaves everything as it is.
    :return: names of the cleared task instances.

    Raises :class:`ArcadiaConfigError` for a run or a DAG that is not there any more.
    """
    with create_session() as session:
        run = session.scalar(select(DagRun).where(DagRun.dag_id == dag_id, DagRun.run_id == run_id))
        dag = DBDagBag(load_op_links=False).get_dag_for_run(run, session=session) if run is not None else None
        if run is None or dag is None:
            raise ArcadiaConfigError(
                f"The run {run_id} of DAG {dag_id} is not there any more.", what_to_do="Reload the page."
            )
        graph = {
            task.task_id: Node(
                task.task_type, frozenset(task.upstream_task_ids), frozenset(task.downstream_task_ids)
            )
            for task in dag.tasks
        }
        mine = {-1, map_index} if map_index >= 0 else None
        found = session.scalars(
            select(TaskInstance).where(TaskInstance.dag_id == dag_id, TaskInstance.run_id == run_id)
        )
        instances = [ti for ti in found if mine is None or ti.map_index in mine]
        states: dict[str, list[str | None]] = {}
        for ti in instances:
            states.setdefault(ti.task_id, []).append(str(ti.state) if ti.state else None)
        chosen = choose(graph, states)
        cleared = [ti for ti in instances if ti.task_id in chosen]
        run.conf = change_conf(run.conf or {})
        clear_task_instances(cleared, session, dag_run_state=DagRunState.QUEUED)
        return sorted(ti.task_id for ti in cleared)


def _parsed(value: Any) -> Any:
    """An XCom's value: JSON, as text where the database has no type for it."""
    with contextlib.suppress(ValueError, TypeError):
        return json.loads(value) if isinstance(value, str) else value
    return value


def _values(session: Any, tasks: list[Any]) -> dict[tuple[str, str, str, int], Any]:
    """What the tasks returned. A custom XCom backend's references are left out: they are not the value."""
    if not tasks:
        return {}
    runs = {(ti.dag_id, ti.run_id) for ti in tasks}
    wanted = or_(*(and_(XComModel.dag_id == dag, XComModel.run_id == run) for dag, run in runs))
    keys, found = {_key(ti) for ti in tasks}, {}
    for row in session.scalars(select(XComModel).where(XComModel.key == "return_value", wanted)):
        if _key(row) in keys:
            value = _parsed(row.value)
            found[_key(row)] = value if isinstance(value, dict) else None
    return found


def _stores(session: Any, tasks: list[Any]) -> dict[tuple[str, str, str, int], dict[str, Any]]:
    """What is kept beside the tasks: in their task state stores, or before Airflow 3.3 as XComs."""
    if not tasks:
        return {}
    try:
        from airflow.models.task_state_store import TaskStateStoreModel as Model  # noqa: PLC0415
    except ImportError:
        return _kept_as_xcoms(session, tasks)
    runs = {(ti.dag_id, ti.run_id) for ti in tasks}
    wanted = or_(*(and_(Model.dag_id == dag, Model.run_id == run) for dag, run in runs))
    found: dict[tuple[str, str, str, int], dict[str, Any]] = {}
    for row in session.scalars(select(Model).where(wanted)):
        with contextlib.suppress(ValueError):
            found.setdefault(_key(row), {})[row.key] = json.loads(row.value)
    return found


def _kept_as_xcoms(session: Any, tasks: list[Any]) -> dict[tuple[str, str, str, int], dict[str, Any]]:
    runs = {(ti.dag_id, ti.run_id) for ti in tasks}
    wanted = or_(*(and_(XComModel.dag_id == dag, XComModel.run_id == run) for dag, run in runs))
    found: dict[tuple[str, str, str, int], dict[str, Any]] = {}
    kept = XComModel.key.in_([PROGRESS_KEY, BATCH_KEY])
    for row in session.scalars(select(XComModel).where(kept, wanted)):
        found.setdefault(_key(row), {})[row.key] = _parsed(row.value)
    return found
