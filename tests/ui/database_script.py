"""Run by ``test_database.py`` in a process of its own, with an Airflow database that is new."""

from __future__ import annotations

import json
import sys
from typing import Any

import pendulum
from airflow.sdk import DAG, BaseOperator

HANDLE = {"name": "w", "lease": "l", "url": "http://w", "num_gpus": 2}
SUMMARY = {"rows": 9, "ok": 7, "failed": 2, "output": "o.jsonl", "completion_id": "abc"}


class Returns(BaseOperator):
    """Returns a value; its subclasses have the names that the page looks for."""

    template_fields = ("input",)

    def __init__(self, value: Any = None, input: str = "", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.value = value
        self.input = input

    def execute(self, context: Any) -> Any:
        """Return it, and leave progress beside the task as the batch operator does."""
        from airflow_arcadia.operators.batch import PROGRESS_KEY, _keep

        if self.value is SUMMARY:
            _keep(
                context, PROGRESS_KEY, {"done": 9, "total": 9, "failed": 2, "history": [[1.0, 2, 3.0, 4.0]]}
            )
        return self.value


class ArcadiaReserveWorkerOperator(Returns):
    pass


class ArcadiaLaunchWorkerOperator(Returns):
    pass


class ArcadiaBatchInferenceOperator(Returns):
    pass


class ArcadiaTeardownWorkerOperator(Returns):
    pass


with DAG("dag", schedule=None, start_date=pendulum.datetime(2026, 1, 1), catchup=False) as dag:
    prepare = Returns(task_id="prepare")
    reserve = ArcadiaReserveWorkerOperator(task_id="reserve")
    launch = ArcadiaLaunchWorkerOperator(task_id="launch_worker", value=HANDLE)
    answer = ArcadiaBatchInferenceOperator(task_id="answer", value=SUMMARY, input="in-{{ ds }}.jsonl")
    down = ArcadiaTeardownWorkerOperator(task_id="teardown_worker")
    publish = Returns(task_id="publish")
    prepare >> reserve >> launch >> answer >> [down, publish]


def main() -> None:
    """One run, what the page reads of it, and what its actions do to it; all of it as JSON on stdout."""
    run_id = dag.test(logical_date=pendulum.datetime(2026, 2, 3), run_conf={"limit": 9}).run_id

    from airflow.models import DagRun, Log, TaskInstance
    from airflow.utils.session import create_session
    from sqlalchemy import select

    from airflow_arcadia.ui import actions, database, view

    key = ("dag", run_id, "answer", -1)
    (listed,) = database.batch_tasks()
    task = database.batch_task(*key)
    assert task == listed
    told: dict[str, Any] = {
        "batch": view.batch(task, 1e10),
        "handle": view.worker_of(task, database.run_tasks([("dag", run_id)])),
        "input": database.rendered(*key)["input"],
        "said": actions.retry_failed_rows(*key),
    }
    with create_session() as session:
        run = session.scalar(select(DagRun).where(DagRun.run_id == run_id))
        told |= {"conf": run.conf, "state": str(run.state)}
        found = session.scalars(select(TaskInstance).where(TaskInstance.run_id == run_id))
        told["states"] = {ti.task_id: ti.state and str(ti.state) for ti in found}
        ti = session.scalar(select(TaskInstance).where(TaskInstance.task_id == "answer"))
        ti.state = "running"
    told["marked"] = [database.mark_failed(*key), database.mark_failed(*key)]
    told["answer"] = database.batch_task(*key).state
    database.write_audit_log("arcadia_reap", "ada", {"note": "why"}, "dag", run_id)
    with create_session() as session:
        entry = session.scalar(select(Log).where(Log.event == "arcadia_reap"))
        told["log"] = [entry.owner, json.loads(entry.extra)["note"], entry.dag_id]
    print("TOLD", json.dumps(told), file=sys.stderr)


if __name__ == "__main__":
    main()
