"""What a person can do from the page. Each returns a sentence about what happened."""

from __future__ import annotations

import asyncio
import time

from airflow_arcadia.exceptions import ArcadiaConfigError, TeardownError, UnreadableLeaseError
from airflow_arcadia.hooks.arcadia import ArcadiaHook
from airflow_arcadia.lease import Identity
from airflow_arcadia.operators._failed_rows import task_name, with_request
from airflow_arcadia.reap import connection_ids, lines_of, reap_connection, run_state
from airflow_arcadia.ui import database, view
from airflow_arcadia.ui.retry import tasks_to_clear
from airflow_arcadia.ui.snapshot import connection_of
from airflow_arcadia.worker import WorkerHandle

GRACE_S = 15.0
LONGEST_S = 60.0
"""Seconds an action may take before the page stops waiting for it."""


def identity_of(conn_id: str, lease: str) -> Identity | None:
    """Whose lease it is; None for one that is gone or cannot be read, and for a warm worker's."""
    _require_connection(conn_id)
    try:
        found = ArcadiaHook(conn_id).leases.read(lease)
    except UnreadableLeaseError:
        return None
    return found.identity if found and found.warm is None else None


def end_worker(conn_id: str, lease: str) -> str:
    """End everything the lease owns. Raises :class:`TeardownError` naming what is still there."""
    hook = ArcadiaHook(conn_id)
    warm = _warm_worker_of(hook, lease)
    left = hook.end(lease, grace_s=GRACE_S)
    if left:
        raise TeardownError(
            f"Not all that lease {lease} owns has ended.",
            still_running="; ".join(left),
            what_to_do="Try again, or end by hand what stays.",
        )
    shared = f" The warm worker that it used has a lease of its own, {warm}." if warm else ""
    return f"Everything that lease {lease} owned has ended.{shared}"


def _warm_worker_of(hook: ArcadiaHook, lease: str) -> str | None:
    try:
        found = hook.leases.read(lease)
    except UnreadableLeaseError:
        return None
    return found.warm_name if found else None


def extend_lease(conn_id: str, lease: str) -> str:
    """Renew the lease for its whole duration from now."""
    hook = ArcadiaHook(conn_id)
    found = hook.leases.read(lease)
    if found is None:
        raise ArcadiaConfigError(f"There is no lease {lease}.", what_to_do="Nothing is held under it.")
    if found.released:
        raise ArcadiaConfigError(
            f"Lease {lease} was released: what it owns is ending.", what_to_do="Start a new run."
        )
    hook.leases.update(lease, lambda held: held.renew(time.time()))
    return f"Lease {lease} holds for another {found.duration_s / 60:.0f} minutes."


def reap() -> str:
    """Sweep the leases of every connection."""
    lines = []
    for conn_id in connection_ids():
        lines += lines_of(conn_id, reap_connection(conn_id, run_state, grace_s=GRACE_S))
    return "; ".join(lines) or "There is no connection of type arcadia."


def cancel_batch(dag_id: str, run_id: str, task_id: str, map_index: int) -> str:
    """Stop a batch that runs: in its worker, or in its task, which is marked as failed.

    Raises :class:`ArcadiaConfigError` for one that does not run.
    """
    task = database.batch_task(dag_id, run_id, task_id, map_index)
    batch_id = task.store.get("batch_id") if task else None
    if database.mark_failed(dag_id, run_id, task_id, map_index):
        return f"{task_id} stops at the next committed row; what it committed is kept."
    if task is None or task.state != "deferred" or not batch_id:
        raise ArcadiaConfigError(
            "This batch does not run now.", what_to_do="Mark its task as failed in Airflow if it waits."
        )
    handle = view.worker_of(task, database.run_tasks([(dag_id, run_id)]))
    if handle is not None:
        asyncio.run(_cancel(WorkerHandle.from_dict(handle), str(batch_id)))
        return f"{batch_id} stops at the next committed row; what it committed is kept."
    raise ArcadiaConfigError("The batch's worker is not known.", what_to_do="Mark its task as failed.")


def retry_failed_rows(dag_id: str, run_id: str, task_id: str, map_index: int) -> str:
    """Answer the failed rows of a batch again, in the same run; all other answers are kept.

    The run's configuration then says which rows are meant. The batch, what depends on it and, where it was
    torn down, its worker run again. Raises :class:`ArcadiaConfigError` where there is nothing to retry.
    """
    task = database.batch_task(dag_id, run_id, task_id, map_index)
    shown = view.batch(task, time.time()) if task else {}
    failed = (shown.get("progress") or {}).get("failed") or 0
    if task is None or task.state not in view.ENDED_STATES or not failed:
        raise ArcadiaConfigError(
            "This batch has no failed rows that could be answered again now.",
            what_to_do="Look again when it has ended; clear its task to run all of it once more.",
        )
    completion_id = (shown["summary"] or {}).get("completion_id") or ""
    if shown["summary"] and not completion_id:
        raise ArcadiaConfigError(
            "This batch was answered by an earlier version, which did not note what identifies it.",
            what_to_do="Set options={'retry_failed_only': True} and clear its task.",
        )
    name = task_name(task_id, map_index)
    cleared = database.clear_for_retry(
        dag_id,
        run_id,
        map_index,
        lambda graph, states: tasks_to_clear(graph, task_id, states),
        lambda conf: with_request(conf, name, completion_id),
    )
    return f"{failed} failed rows are answered again: {len(cleared)} tasks of the run were cleared for it."


async def _cancel(handle: WorkerHandle, batch_id: str) -> None:
    hook = await asyncio.to_thread(_hook_of, handle)
    # A batch of the run's own tasks is known only to who sends their token.
    batches = await hook.remote_batches(handle)
    await batches.cancel(batch_id)


def _hook_of(handle: WorkerHandle) -> ArcadiaHook:
    conn_id = connection_of(handle.lease)
    if conn_id is None:
        raise ArcadiaConfigError("The worker has ended.", what_to_do="Look at the task's log.")
    return ArcadiaHook(conn_id)


def _require_connection(conn_id: str) -> None:
    if conn_id not in connection_ids():
        raise ArcadiaConfigError(
            f"There is no arcadia connection {conn_id!r}.", what_to_do="Reload the page."
        )
