"""What may happen to a run: when, what, and what is true afterwards."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.lifecycle.stage import Run, wait

AT_ONCE_S, BY_NET_S = 30.0, 120.0
"""How soon everything must be gone: by itself, or where only the lease or the reaper can act."""


@dataclass(frozen=True)
class Case:
    """One event in one run.

    :param dag: DAG of the matrix, without its prefix.
    :param event: done once ``when`` is true; None for a run that nothing happens to.
    :param truth: state that the run must end in.
    :param rows: rows that the output must have; None where it must have none.
    :param gone_s: seconds after the run's end within which everything of it must be gone.
    :param alone: whether it touches all of Airflow, so that no other case may run beside it.
    :param ends: False for a run that cannot end because of what happens.
    :param restored: brings Airflow back; the run's end is waited for after it.
    """

    name: str
    dag: str
    truth: str
    when: Callable[[Run], Any] | None = None
    event: Callable[[Run], None] | None = None
    conf: dict[str, Any] = field(default_factory=dict)
    rows: int | None = None
    gone_s: float = AT_ONCE_S
    alone: bool = False
    freed_first: bool = False
    restored: Callable[[Run], None] | None = None
    representative: bool = False


def held(step: str) -> Callable[[Run], bool]:
    return lambda run: run.reached(step)


def ready_waits(run: Run) -> bool:
    return run.states().get("model_ready") in {"deferred", "running"} and bool(
        run.stage.processes(run, "engine")
    )


def batch_runs(run: Run) -> bool:
    return run.answering()


TASK_OF = {
    "reserve": "reserve",
    "provision": "provision_ray_cluster",
    "launch": "launch_worker",
    "ready": "model_ready",
    "ready_poke": "model_ready",
    "batch": "answer",
    "batch_worker": "answer",
    "teardown": "teardown_worker",
}
DAG_OF = {"ready": "loading", "ready_poke": "loading_poke", "batch": "task", "batch_worker": "worker"}
HELD = ("reserve", "provision", "launch", "teardown")


def at(step: str) -> dict[str, Any]:
    """DAG, condition and conf of a run that is in the middle of that step."""
    if step in HELD:
        return {"dag": "quick", "when": held(step), "conf": {"hold": step}}
    return {"dag": DAG_OF[step], "when": batch_runs if step.startswith("batch") else ready_waits}


def kill_task(step: str) -> Callable[[Run], None]:
    def kill(run: Run) -> None:
        os.kill(run.task(TASK_OF[step])["pid"], signal.SIGKILL)

    return kill


def kill_process(role: str) -> Callable[[Run], None]:
    def kill(run: Run) -> None:
        for process in run.stage.processes(run, role):
            process.kill()

    return kill


def tear_lease(run: Run) -> None:
    run.stage.store.file(run.stage.lease(run)).write_text("{")


def age_lease(run: Run) -> None:
    """A field that only a later version knows."""
    path = run.stage.store.file(run.stage.lease(run))
    raw = json.loads(path.read_text())
    path.write_text(json.dumps(raw | {"of_a_later_version": {"x": 1}}))


def restart(*names: str, after_s: float = 5.0) -> Callable[[Run], None]:
    def do(run: Run) -> None:
        for name in names:
            run.stage.airflow.kill(name)
        time.sleep(after_s)
        start(*names)(run)

    return do


def start(*names: str) -> Callable[[Run], None]:
    def do(run: Run) -> None:
        for name in names:
            run.stage.airflow.start_component(name)

    return do


def kill_airflow(*names: str) -> Callable[[Run], None]:
    def do(run: Run) -> None:
        for name in names:
            run.stage.airflow.kill(name)

    return do


def clear_ended(*names: str, downstream: bool = False) -> Callable[[Run], None]:
    def do(run: Run) -> None:
        wait(lambda: run.state in {"success", "failed"}, 120, "the first end")
        run.clear(*names, downstream=downstream)
        wait(lambda: run.state in {"queued", "running"}, 30, "the run to go on")

    return do


def _cases() -> list[Case]:
    found = [
        Case("success.task", "quick", "success", rows=10, representative=True),
        Case("success.worker", "quick_worker", "success", rows=10),
    ]
    for step, task in TASK_OF.items():
        if step == "ready_poke":
            continue
        done = 10 if step == "teardown" else None
        # A killed teardown has not released its lease: only the lease or the reaper can act.
        net = BY_NET_S if step == "teardown" else AT_ONCE_S
        found += [
            Case(f"kill.{step}", truth="failed", event=kill_task(step), rows=done, gone_s=net, **at(step))
            if step not in {"ready", "batch_worker"}
            else Case(f"kill.{step}", truth="failed", event=kill_process("server"), **at(step)),
            Case(
                f"task_failed.{step}",
                truth="failed",
                event=lambda run, task=task: run.mark_task(task, "failed"),
                rows=done,
                gone_s=net,
                **at(step),
            ),
            Case(
                f"task_success.{step}",
                truth="success" if step in {"provision", "batch", "batch_worker", "teardown"} else "failed",
                event=lambda run, task=task: run.mark_task(task, "success"),
                rows={"teardown": 10, "provision": 10}.get(step),
                gone_s=net,
                **at(step),
            ),
            Case(
                f"run_failed.{step}",
                truth="failed",
                event=lambda run: run.mark_run("failed"),
                rows=done,
                **at(step),
            ),
            Case(
                f"run_success.{step}",
                truth="success",
                event=lambda run: run.mark_run("success"),
                rows=done,
                **at(step),
            ),
        ]
    found += [Case(f"raise.{step}", "quick", "failed", conf={"fail": step}) for step in ("reserve", "launch")]
    found += [
        Case("raise.batch", "quick", "failed", conf={"fail": "batch"}, rows=10),
        Case("raise.teardown", "quick", "failed", conf={"fail": "teardown"}, rows=10, gone_s=BY_NET_S),
        Case("raise.engine_dies", "dies", "failed", representative=True),
        Case("kill.ready_poke", truth="failed", event=kill_task("ready_poke"), **at("ready_poke")),
        Case("lease.torn", truth="success", event=tear_lease, rows=200, **at("batch")),
        Case("lease.later_version", truth="success", event=age_lease, rows=200, **at("batch_worker")),
        Case(
            "lease.deleted",
            truth="failed",
            event=lambda run: run.stage.store.file(run.stage.lease(run)).unlink(),
            **at("batch"),
        ),
        Case("timeout.dagrun", "timeout", "failed", representative=True),
        Case("timeout.dagrun_deferred", "timeout_worker", "failed"),
        Case("timeout.execution_ready", "execution_ready", "failed"),
        Case("timeout.execution_batch", "execution_batch", "failed"),
        Case("user.long_task", "long_task", "success", rows=10, representative=True),
        Case("user.short_lease", "short_lease", "success", rows=250),
        Case("user.short_lease_worker", "short_lease_worker", "success", rows=250),
        Case("worker.server", truth="failed", event=kill_process("server"), **at("batch")),
        Case("worker.engine", truth="success", event=kill_process("engine"), rows=200, **at("batch")),
        Case("worker.supervisor", truth="failed", event=kill_process("supervisor"), **at("batch")),
        Case(
            "worker.supervisor_deferred",
            truth="failed",
            event=kill_process("supervisor"),
            **at("batch_worker"),
        ),
        Case("worker.supervisor_loading", truth="failed", event=kill_process("supervisor"), **at("ready")),
        Case("clear.batch_task", "quick", "success", None, clear_ended("answer"), rows=10),
        Case("clear.batch_worker", "quick_worker", "success", None, clear_ended("answer"), rows=10),
        Case(
            "clear.from_reserve",
            "quick",
            "success",
            None,
            clear_ended("reserve", downstream=True),
            rows=10,
        ),
        Case(
            "triggerer.restarted_ready",
            truth="failed",
            event=restart("triggerer"),
            alone=True,
            dag="execution_ready",
            when=ready_waits,
        ),
        Case(
            "triggerer.restarted_batch",
            truth="success",
            event=restart("triggerer"),
            rows=200,
            alone=True,
            **at("batch_worker"),
        ),
        Case(
            "scheduler.restarted_batch_worker",
            truth="success",
            event=restart("scheduler"),
            rows=200,
            alone=True,
            **at("batch_worker"),
        ),
        Case(
            "airflow.gone_batch_worker",
            "lapsing_worker",
            "success",
            batch_runs,
            kill_airflow("scheduler", "triggerer", "api-server", "dag-processor"),
            rows=150,
            alone=True,
            freed_first=True,
            restored=start("api-server", "scheduler", "triggerer", "dag-processor"),
        ),
        Case(
            "airflow.gone_batch_task",
            "short_lease",
            "failed",
            batch_runs,
            kill_airflow("scheduler", "triggerer", "api-server", "dag-processor"),
            alone=True,
            freed_first=True,
            restored=start("api-server", "scheduler", "triggerer", "dag-processor"),
        ),
    ]
    return found


CASES = _cases()
