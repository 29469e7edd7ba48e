"""``python -m airflow_arcadia.reap``: end what leases that nobody holds any more still own.

Run beside Airflow, with its configuration: connections and the states of runs are read from its database.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from airflow_arcadia.exceptions import ArcadiaConfigError, ArcadiaError
from airflow_arcadia.launchers.reaper import Held, Report, RunState, reap
from airflow_arcadia.lease import Identity


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line. Exit code 0; 1 when something is left or could not be dealt with."""
    parser = argparse.ArgumentParser(prog="python -m airflow_arcadia.reap", description=__doc__)
    parser.add_argument("--dry-run", action="store_true", help="only say what would be ended")
    parser.add_argument("--conn-id", action="append", help="only this arcadia connection; may be repeated")
    parser.add_argument("--grace", type=float, default=30.0, help="seconds between SIGTERM and SIGKILL")
    parser.add_argument("--dag-id", help="with --run-id: end what that run left, whatever its state")
    parser.add_argument("--run-id", help="see --dag-id")
    parser.add_argument("--task-id", help="with --dag-id: only what that teardown task is there to end")
    parser.add_argument(
        "--reserved-before",
        type=float,
        default=math.inf,
        help="with --dag-id: no lease that was reserved later, in seconds since the epoch",
    )
    parser.add_argument("--map-index", type=int, default=-1, help="of --task-id")
    options = parser.parse_args(arguments)
    if bool(options.dag_id) != bool(options.run_id) or (options.task_id and not options.dag_id):
        parser.error("--dag-id and --run-id go together, and --task-id with both")
    # Airflow reads its connections from its database only in a process that says it is the server's.
    os.environ.setdefault("_AIRFLOW_PROCESS_CONTEXT", "server")
    only = _of_run(options.dag_id, options.run_id) if options.dag_id else None
    conn_ids = options.conn_id
    if options.task_id:
        try:
            name, conn_id = torn_down_by(options.dag_id, options.run_id, options.task_id, options.map_index)
        except ArcadiaError as error:
            print(error)
            return 1
        only, conn_ids = _of_lease(name), [conn_id]
    if only is not None:
        only = _reserved_before(options.reserved_before, only)
    failed = False
    for conn_id in conn_ids or connection_ids():
        try:
            report = reap_connection(
                conn_id, run_state, dry_run=options.dry_run, grace_s=options.grace, only=only
            )
        except ArcadiaError as error:
            print(f"{conn_id}: {error}")
            failed = True
            continue
        for line in lines_of(conn_id, report, dry_run=options.dry_run):
            print(line)
        failed |= bool(report.errors) or any(item.left for item in report.reaped)
    return int(failed)


def reap_connection(
    conn_id: str,
    run_state: RunState,
    *,
    dry_run: bool = False,
    grace_s: float = 30.0,
    only: Callable[[Held], str | None] | None = None,
) -> Report:
    """Sweep the leases of one connection. Raises :class:`ArcadiaError` when they cannot be listed."""
    from airflow_arcadia.hooks.arcadia import ArcadiaHook  # noqa: PLC0415 - after the process context is set

    backend = ArcadiaHook(conn_id).reap_backend
    return reap(backend, run_state, time.time(), dry_run=dry_run, grace_s=grace_s, only=only)


def lines_of(conn_id: str, report: Report, *, dry_run: bool = False) -> list[str]:
    """The report in words, one line a lease and one for all."""
    verb = "would end" if dry_run else "ended"
    lines = [
        f"{conn_id}: {verb} {item.name}: {item.why}; {item.gpus} GPUs, {item.gpu_hours:.2f} GPU-hours"
        + (f"; still there: {', '.join(item.left)}" if item.left else "")
        for item in report.reaped
    ]
    lines += [f"{conn_id}: {name} was not dealt with: {why}" for name, why in report.errors.items()]
    freed = sum(item.gpus for item in report.reaped if not item.left)
    ended, gone = ("to end", "to free") if dry_run else ("ended", "freed")
    waiting = f" ({len(report.warm)} warm)" if report.warm else ""
    lines.append(
        f"{conn_id}: {len(report.reaped)} leases {ended}, {len(report.kept)} kept{waiting}, "
        f"{freed} GPUs {gone}, {report.gpu_hours:.2f} GPU-hours since their last renewals"
    )
    return lines


def connection_ids() -> list[str]:
    """Every connection of type ``arcadia``: of the environment and of Airflow's database."""
    from airflow.models import Connection  # noqa: PLC0415
    from airflow.utils.session import create_session  # noqa: PLC0415
    from sqlalchemy import select  # noqa: PLC0415

    with create_session() as session:
        kept = session.scalars(select(Connection.conn_id).where(Connection.conn_type == "arcadia")).all()
    return sorted({*environment_connection_ids(), *(str(conn_id) for conn_id in kept)})


def environment_connection_ids() -> list[str]:
    """Every connection of type ``arcadia`` that an ``AIRFLOW_CONN_…`` variable holds."""
    from airflow.sdk import Connection  # noqa: PLC0415

    prefix, found = "AIRFLOW_CONN_", []
    for variable, text in os.environ.items():
        if variable.startswith(prefix):
            conn_id = variable.removeprefix(prefix).lower()
            is_json = text.lstrip().startswith("{")
            kind = Connection.from_json(text, conn_id).conn_type if is_json else text.partition("://")[0]
            if kind == "arcadia":
                found.append(conn_id)
    return sorted(found)


def run_state(identity: Identity) -> str | None:
    """State of the lease's run, from Airflow's database."""
    from airflow.models import DagRun  # noqa: PLC0415
    from airflow.utils.session import create_session  # noqa: PLC0415
    from sqlalchemy import select  # noqa: PLC0415

    wanted = (DagRun.dag_id == identity.dag_id, DagRun.run_id == identity.run_id)
    with create_session() as session:
        state = session.scalar(select(DagRun.state).where(*wanted))
    return None if state is None else str(state)


def torn_down_by(dag_id: str, run_id: str, task_id: str, map_index: int) -> tuple[str, str]:
    """Name of the lease that a teardown task of that run ends, and its connection; from Airflow's database.

    Raises :class:`ArcadiaConfigError` where the DAG does not say so: no such task, or parameters that are
    templates.
    """
    task = _task_of_run(dag_id, run_id, task_id)
    group, conn_id = getattr(task, "group", None), getattr(task, "arcadia_conn_id", None)
    if not group or not conn_id or "{{" in f"{group}{conn_id}":
        raise ArcadiaConfigError(
            f"The lease that task {task_id} of {dag_id} tears down cannot be told from the DAG.",
            still_running="What it owns runs until the lease lapses.",
            what_to_do="Give ArcadiaTeardownWorkerOperator its group, or run the reaper.",
        )
    return Identity(dag_id, run_id, str(group), map_index).lease_name, str(conn_id)


def _task_of_run(dag_id: str, run_id: str, task_id: str) -> Any:
    """The task as the DAG of that run has it; None where there is no such task or run."""
    from airflow.models import DagRun  # noqa: PLC0415
    from airflow.models.dagbag import DBDagBag  # noqa: PLC0415
    from airflow.utils.session import create_session  # noqa: PLC0415
    from sqlalchemy import select  # noqa: PLC0415

    with create_session() as session:
        run = session.scalar(select(DagRun).where(DagRun.dag_id == dag_id, DagRun.run_id == run_id))
        dag = None if run is None else DBDagBag().get_dag_for_run(dag_run=run, session=session)
    return dag.get_task(task_id) if dag is not None and dag.has_task(task_id) else None


def _of_lease(name: str) -> Callable[[Held], str | None]:
    return lambda held: "its teardown was ended" if held.name == name else None


def _reserved_before(moment: float, decide: Callable[[Held], str | None]) -> Callable[[Held], str | None]:
    return lambda held: None if held.lease and held.lease.created_at > moment else decide(held)


def _of_run(dag_id: str, run_id: str) -> Callable[[Held], str | None]:
    def decide(held: Held) -> str | None:
        identity = held.lease.identity if held.lease else None
        same = identity is not None and (identity.dag_id, identity.run_id) == (dag_id, run_id)
        return "its run ended" if same else None

    return decide


if __name__ == "__main__":
    sys.exit(main())
