"""When a run has failed without its teardown (``dagrun_timeout`` skips it), end what its leases own.

The scheduler waits for its listeners, so the work is done by a process of its own: ``airflow_arcadia.reap``.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from typing import Any

from airflow.listeners import hookimpl

RESERVE = "ArcadiaReserveWorkerOperator"
MARKED_BY_A_USER = "manually set"
"""Part of the message for a run that a user marked: its teardown still runs."""
_TIMEOUT_S = 300.0

log = logging.getLogger(__name__)


@hookimpl
def on_dag_run_failed(dag_run: Any, msg: str) -> None:
    """Start a process that ends what the run's leases own. Does not wait for it."""
    if MARKED_BY_A_USER in msg or not has_workers(getattr(dag_run, "dag", None)):
        return
    log.info("Run %s of %s failed (%s): ending what is left of it.", dag_run.run_id, dag_run.dag_id, msg)
    arguments = ["--dag-id", dag_run.dag_id, "--run-id", dag_run.run_id]
    threading.Thread(target=_reap, args=(arguments,), name="arcadia-reap-run", daemon=True).start()


def has_workers(dag: Any) -> bool:
    """Whether the DAG, serialised or not, reserves a worker."""
    tasks = getattr(dag, "tasks", None) or ()
    return any(getattr(task, "task_type", "") == RESERVE for task in tasks)


def _reap(arguments: list[str]) -> None:
    argv = [sys.executable, "-m", "airflow_arcadia.reap", *arguments]
    try:
        done = subprocess.run(
            argv,
            env=dict(os.environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
            start_new_session=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("What is left of the run was not ended; the reaper does it: %s", error)
        return
    for line in (done.stdout + (done.stderr if done.returncode else "")).splitlines():
        log.info("%s", line)
