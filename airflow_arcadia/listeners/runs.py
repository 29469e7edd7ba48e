"""When a run has failed without its teardown (``dagrun_timeout`` skips it), end what its leases own.

When a user marks a run whose teardown has not ended, the mark is kept for the teardown to read.
"""

from __future__ import annotations

import logging
from typing import Any

from airflow.listeners import hookimpl

from airflow_arcadia.listeners import run_marks
from airflow_arcadia.listeners.reaping import start_reaping

RESERVE = "ArcadiaReserveWorkerOperator"
MARKED_BY_A_USER = "manually set"
"""Part of the message for a run that a user marked: its teardown still runs."""

log = logging.getLogger(__name__)


@hookimpl
def on_dag_run_failed(dag_run: Any, msg: str) -> None:
    """Start a process that ends what the run's leases own, or keep the user's mark. Does not wait for it."""
    if MARKED_BY_A_USER in msg:
        run_marks.record(dag_run, "failed", RESERVE)
    elif has_workers(getattr(dag_run, "dag", None)):
        log.info("Run %s of %s failed (%s): ending what is left of it.", dag_run.run_id, dag_run.dag_id, msg)
        start_reaping("--dag-id", dag_run.dag_id, "--run-id", dag_run.run_id)


@hookimpl
def on_dag_run_success(dag_run: Any, msg: str) -> None:
    """Keep the user's mark."""
    if MARKED_BY_A_USER in msg:
        run_marks.record(dag_run, "success", RESERVE)


def has_workers(dag: Any) -> bool:
    """Whether the DAG, serialised or not, reserves a worker."""
    tasks = getattr(dag, "tasks", None) or ()
    return any(getattr(task, "task_type", "") == RESERVE for task in tasks)
