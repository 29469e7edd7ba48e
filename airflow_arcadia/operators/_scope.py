"""What became of the tasks and of the run that a teardown belongs to."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow_arcadia.listeners import run_marks

if TYPE_CHECKING:
    from airflow.sdk import Context

FAILED, NEVER_RAN, SUCCESS = "failed", "upstream_failed", "success"

log = logging.getLogger(__name__)


def failed_first(context: Context, upstream: Sequence[str]) -> list[str]:
    """Upstream tasks that failed, in the order of the DAG; those that only never ran where none failed.

    :param upstream: their ids, before the tasks that depend on them.
    """
    if not upstream:
        return []
    ti: Any = context["ti"]
    states = ti.get_task_states(dag_id=ti.dag_id, run_ids=[context["run_id"]], task_ids=list(upstream))
    found = {task: state for run in states.values() for task, state in run.items()}
    order = {task: place for place, task in enumerate(upstream)}

    def place(task: str) -> int:
        # The instances of a mapped task are "task_id_0", "task_id_1", … there.
        return order.get(task, order.get(task.rpartition("_")[0], len(order)))

    named = sorted(found, key=lambda task: (place(task), task))
    failed = [task for task in named if found[task] == FAILED]
    return failed or [task for task in named if found[task] == NEVER_RAN]


def run_is_failed(context: Context) -> bool:
    """Whether the run failed while its teardown ran (dagrun_timeout); False where that cannot be read."""
    ti: Any = context["ti"]
    read = getattr(ti, "get_dagrun_state", None)
    if read is None:
        return False
    try:
        return str(read(ti.dag_id, context["run_id"])) == FAILED
    except Exception:  # the clean-up is done: not knowing must not fail it
        log.warning("The state of the run cannot be read.", exc_info=True)
        return False


def run_marked(context: Context, reserves: Sequence[str]) -> str | None:
    """What a user marked the run as since it began or was cleared: ``failed``, ``success`` or None.

    :param reserves: ids of the reserve tasks before this one: the mark is kept as an XCom of theirs.
    """
    if not reserves:
        return None
    ti: Any = context["ti"]
    cleared = getattr(context.get("dag_run"), "clear_number", None) or 0
    try:
        # Of all map indexes, which have the same one: asking for one that is not there logs an error.
        kept = ti.xcom_pull(task_ids=list(reserves), key=run_marks.KEY) or ()
    except Exception:  # the clean-up is done: not knowing must not fail it
        log.warning("Whether the run was marked cannot be read.", exc_info=True)
        return None
    return next(filter(None, (run_marks.parse(text, cleared) for text in kept)), None)
