"""Keep a worker's lease renewed while a task that may need it runs: a user's own, or a long provisioning.

The renewal lives in the task's own process and ends with it, however it ends. Where Airflow itself ends a
teardown (a user marks it, or its process is lost), what it leaves behind is ended by a process of its own.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from airflow.listeners import hookimpl

from airflow_arcadia.listeners.reaping import start_reaping
from airflow_arcadia.listeners.runs import RESERVE

if TYPE_CHECKING:
    from airflow_arcadia.launchers.background import Background
    from airflow_arcadia.lease_store import Leases

TEARDOWN = "ArcadiaTeardownWorkerOperator"
RENEW_THEMSELVES = frozenset({RESERVE, TEARDOWN, "ArcadiaBatchInferenceOperator", "ArcadiaModelReadySensor"})

_LOOK_S = 2.0

log = logging.getLogger(__name__)
_keepers: list[Background] = []


@hookimpl
def on_task_instance_running(previous_state: Any, task_instance: Any) -> None:
    """Start renewing the leases that the task runs under. Never fails the task."""
    try:
        for reserve in reserved_for(getattr(task_instance, "task", None)):
            _start(reserve, task_instance)
    except Exception:  # a lease that is not renewed must not keep a task from running
        log.warning("The leases that this task runs under are not renewed meanwhile.", exc_info=True)


@hookimpl
def on_task_instance_success(previous_state: Any, task_instance: Any) -> None:
    """Stop renewing, and end what a teardown that was marked leaves behind."""
    _stop()
    _finish_teardown(task_instance)


@hookimpl
def on_task_instance_failed(previous_state: Any, task_instance: Any, error: Any) -> None:
    """Stop renewing, and end what a teardown that was marked, or lost its process, leaves behind."""
    _stop()
    _finish_teardown(task_instance)


@hookimpl
def on_task_instance_skipped(previous_state: Any, task_instance: Any) -> None:
    """Stop renewing, and end what a teardown that was marked leaves behind."""
    _stop()
    _finish_teardown(task_instance)


def reserved_for(task: Any) -> Iterator[Any]:
    """The reserve tasks whose worker lives while ``task`` runs: before it, their own teardown after it."""
    dag = getattr(task, "dag", None)
    if dag is None or task.task_type in RENEW_THEMSELVES:
        return
    if not any(other.task_type == RESERVE for other in dag.tasks):
        return
    before = task.get_flat_relative_ids(upstream=True)
    after = task.get_flat_relative_ids(upstream=False)
    for reserve in dag.tasks:
        if reserve.task_type != RESERVE or reserve.task_id not in before:
            continue
        if any(dag.get_task(i).task_type == TEARDOWN for i in after & reserve.downstream_task_ids):
            yield reserve


def _finish_teardown(task_instance: Any) -> None:
    # Only Airflow's own record of a task, not the one in the task's process, has its operator: whoever
    # changes that record has ended the task without its doing.
    if getattr(task_instance, "operator", None) != TEARDOWN:
        return
    log.info("Teardown %s was ended from outside: ending what is left.", task_instance.task_id)
    start_reaping(
        *("--dag-id", task_instance.dag_id, "--run-id", task_instance.run_id),
        *("--task-id", task_instance.task_id, "--map-index", str(task_instance.map_index)),
    )


def _start(reserve: Any, task_instance: Any) -> None:
    if "{{" in f"{reserve.group}{reserve.arcadia_conn_id}":
        log.info("The lease of %s is not renewed: its parameters are templates.", reserve.task_id)
        return
    # Imported late: most tasks of an Airflow have nothing to do with a worker.
    from airflow_arcadia.hooks.arcadia import ArcadiaHook  # noqa: PLC0415
    from airflow_arcadia.launchers.background import Background  # noqa: PLC0415
    from airflow_arcadia.lease import Identity  # noqa: PLC0415

    leases = ArcadiaHook(reserve.arcadia_conn_id).leases
    # Inside a mapped group every task has the reserve task's map index; a mapped task has one of its own.
    indexes = {-1, -1 if task_instance.map_index is None else task_instance.map_index}
    names = [
        Identity(task_instance.dag_id, task_instance.run_id, reserve.group, index).lease_name
        for index in indexes
    ]
    # In a thread: an API server that is away must not keep the task from starting.
    keeper = Background("arcadia-lease-keeper", [partial(_keep, leases, name) for name in names])
    keeper.start()
    _keepers.append(keeper)


async def _keep(leases: Leases, name: str) -> None:
    from airflow_arcadia.exceptions import LeaseError  # noqa: PLC0415
    from airflow_arcadia.launchers.renewal import keep_renewed  # noqa: PLC0415

    supervised_by = os.getppid()
    renewing = asyncio.ensure_future(keep_renewed(leases, name, log))
    try:
        while not renewing.done() and os.getppid() == supervised_by:
            await asyncio.wait({renewing}, timeout=_LOOK_S)
        if not renewing.done():
            # Airflow has lost this task, and may be gone: what the task still does keeps no worker.
            log.info("Lease %s is no longer renewed: what supervised this task is gone.", name)
            renewing.cancel()
        await renewing
    except asyncio.CancelledError:
        renewing.cancel()
    except LeaseError:
        log.info("There is no lease %s to renew while this task runs.", name)
    except Exception:  # a thread must not end in silence
        log.warning("Lease %s is no longer renewed.", name, exc_info=True)


def _stop() -> None:
    while _keepers:
        _keepers.pop().stop()
