"""What may happen to a run: when, what, and what is true afterwards."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.lifecycle.stage import HERE, Run, Stage, wait

AT_ONCE_S, BY_NET_S = 30.0, 120.0
"""How soon everything must be gone: by itself, or where only the lease or the reaper can act."""
KEPT_WARM_S = 15.0
"""And how much later where the worker is kept warm."""


ENDED = frozenset({"success", "failed"})
RUNNING = "running"
"""The true state of a run that cannot end, because of what happens."""


@dataclass(frozen=True)
class Outage:
    """What happens to parts of Airflow, and so to several runs at once.

    :param lasting: whether it is over only after the runs were judged.
    """

    name: str
    begin: Callable[[Stage], None]
    end: Callable[[Stage], None]
    lasting: bool = False


@dataclass(frozen=True)
class Case:
    """One event in one run.

    :param dag: DAG of the matrix, without its prefix.
    :param truth: state that the run must end in; :data:`RUNNING` for one that cannot end.
    :param when: true once the event may happen.
    :param event: done then; None for a run that nothing happens to.
    :param outage: happens then, to every case that has the same one; no other case runs beside them.
    :param rows: rows that the output must have; None where it must have none.
    :param gone_s: seconds after the run's end within which everything of it must be gone.
    :param freed_first: whether the worker must be gone before ``restored``, or the outage's end.
    :param restored: undoes the event where the run cannot end without that.
    :param real: whether the real engine serves.
    :param in_cluster: whether the worker is in the loopback cluster, and no process of Airflow's machine.
    """

    name: str
    dag: str
    truth: str
    when: Callable[[Run], Any] | None = None
    event: Callable[[Run], None] | None = None
    conf: dict[str, Any] = field(default_factory=dict)
    rows: int | None = None
    gone_s: float = AT_ONCE_S
    outage: Outage | None = None
    freed_first: bool = False
    restored: Callable[[Run], None] | None = None
    representative: bool = False
    real: bool = False
    in_cluster: bool = False


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
        os.kill(run.pid(TASK_OF[step]), signal.SIGKILL)

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


def mark_run_and_release(state: str) -> Callable[[Run], None]:
    """Mark the run, and let a teardown that is held go on: Airflow does not end it."""

    def mark(run: Run) -> None:
        run.mark_run(state)
        run.release()

    return mark


def outage(
    name: str, *components: str, tasks: bool = False, lasting: bool = False, down_s: float = 5.0
) -> Outage:
    """SIGKILL to these components; they are started again after some seconds, or only after the verdict.

    :param tasks: also to the process of every running task, which outlives its component.
    """

    def begin(stage: Stage) -> None:
        for component in components:
            stage.airflow.kill(component)
        if tasks:
            stage.kill_tasks()
        time.sleep(0 if lasting else down_s)

    def end(stage: Stage) -> None:
        for component in components:
            stage.airflow.start_component(component)
            if component == "api-server":
                wait(stage.airflow.answers, 120, "the API server to answer")

    return Outage(name, begin, end, lasting)


TRIGGERER_RESTARTED = outage("triggerer.restarted", "triggerer")
TRIGGERER_GONE = outage("triggerer.gone", "triggerer", lasting=True)
SCHEDULER_RESTARTED = outage("scheduler.restarted", "scheduler")
SCHEDULER_GONE = outage("scheduler.gone", "scheduler", lasting=True)
API_SERVER_RESTARTED = outage("api_server.restarted", "api-server")
ALL_OF_AIRFLOW = ("api-server", "scheduler", "triggerer", "dag-processor")
AIRFLOW_GONE = outage("airflow.gone", *ALL_OF_AIRFLOW, down_s=0)
AIRFLOW_AND_TASKS_GONE = outage("airflow.gone_with_tasks", *ALL_OF_AIRFLOW, tasks=True, down_s=0)


def pause(paused: bool) -> Callable[[Run], None]:
    return lambda run: run.stage.request("PATCH", f"/dags/{run.dag_id}", {"is_paused": paused})


def delete_dag_file(run: Run) -> None:
    (run.stage.folder / "dags" / "deletable.py").unlink(missing_ok=True)


def restore_dag_file(run: Run) -> None:
    shutil.copy(HERE / "dags" / "deletable.py", run.stage.folder / "dags")


def clear_ended(*names: str, downstream: bool = False) -> Callable[[Run], None]:
    def do(run: Run) -> None:
        wait(lambda: run.state in ENDED, 300, "the first end")
        run.clear(*names, downstream=downstream)
        wait(lambda: run.state in {"queued", "running"}, 120, "the run to go on")

    return do


def one_after_another(*events: Callable[[Run], None]) -> Callable[[Run], None]:
    def do(run: Run) -> None:
        for event in events:
            event(run)

    return do


def clear_running(*names: str) -> Callable[[Run], None]:
    return lambda run: run.clear(*names)


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
                event=mark_run_and_release("failed"),
                rows=done,
                **at(step),
            ),
            Case(
                f"run_success.{step}",
                truth="success",
                event=mark_run_and_release("success"),
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
        Case("user.short_lease", "short_lease", "success", rows=600),
        Case("user.short_lease_worker", "short_lease_worker", "success", rows=600),
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
            "clear.failed_batch",
            truth="failed",
            event=one_after_another(kill_process("server"), clear_ended("answer")),
            **at("batch"),
        ),
        Case(
            "clear.failed_from_reserve",
            truth="success",
            event=one_after_another(kill_process("server"), clear_ended("reserve", downstream=True)),
            rows=200,
            **at("batch"),
        ),
        Case("clear.running_batch", truth="success", event=clear_running("answer"), rows=200, **at("batch")),
        Case(
            "clear.running_batch_worker",
            truth="success",
            event=clear_running("answer"),
            rows=200,
            **at("batch_worker"),
        ),
        Case(
            "dag.paused_batch",
            "paused",
            "success",
            batch_runs,
            pause(True),
            rows=150,
            freed_first=True,
            restored=pause(False),
        ),
        Case(
            "dag.paused_batch_worker",
            "paused_worker",
            "success",
            batch_runs,
            pause(True),
            rows=150,
            freed_first=True,
            restored=pause(False),
        ),
        Case(
            "dag.deleted",
            "deletable",
            "success",
            batch_runs,
            delete_dag_file,
            rows=150,
            freed_first=True,
            restored=restore_dag_file,
        ),
    ]
    return [*found, *_outages(), *_real()]


def _outages() -> list[Case]:
    """What happens to parts of Airflow while runs are in their steps."""
    batch, in_worker = at("batch"), at("batch_worker")
    ready = {"dag": "loading_a_while", "when": ready_waits}
    lapsing = {"outage": AIRFLOW_GONE, "freed_first": True}
    gone = {"outage": SCHEDULER_GONE, "freed_first": True, "truth": RUNNING}
    return [
        Case("triggerer.restarted_ready", truth="success", rows=10, outage=TRIGGERER_RESTARTED, **ready),
        Case("triggerer.restarted_batch", truth="success", rows=200, outage=TRIGGERER_RESTARTED, **in_worker),
        Case(
            "triggerer.gone_ready",
            "lapsing_loading",
            "failed",
            ready_waits,
            outage=TRIGGERER_GONE,
            freed_first=True,
        ),
        # Its batch makes progress and so holds the lease; it is ended at its own timeout.
        Case("triggerer.gone_batch", "late_worker", "failed", batch_runs, outage=TRIGGERER_GONE),
        Case(
            "triggerer.gone_finished_batch",
            "late_finished_worker",
            "success",
            batch_runs,
            rows=200,
            outage=TRIGGERER_GONE,
            freed_first=True,
        ),
        Case(
            "scheduler.restarted_launch", truth="success", rows=10, outage=SCHEDULER_RESTARTED, **at("launch")
        ),
        Case("scheduler.restarted_ready", truth="success", rows=10, outage=SCHEDULER_RESTARTED, **ready),
        Case("scheduler.restarted_batch", truth="success", rows=200, outage=SCHEDULER_RESTARTED, **batch),
        Case(
            "scheduler.restarted_batch_worker",
            truth="success",
            rows=200,
            outage=SCHEDULER_RESTARTED,
            **in_worker,
        ),
        Case(
            "scheduler.restarted_teardown",
            truth="success",
            rows=10,
            outage=SCHEDULER_RESTARTED,
            **at("teardown"),
        ),
        Case("scheduler.gone_ready", "lapsing_loading", when=ready_waits, **gone),
        Case("scheduler.gone_batch", "lapsing", when=batch_runs, **gone),
        Case("scheduler.gone_batch_worker", "lapsing_worker", when=batch_runs, rows=600, **gone),
        Case(
            "api_server.restarted_launch",
            truth="success",
            rows=10,
            outage=API_SERVER_RESTARTED,
            **at("launch"),
        ),
        Case("api_server.restarted_ready", truth="success", rows=10, outage=API_SERVER_RESTARTED, **ready),
        Case("api_server.restarted_batch", truth="success", rows=200, outage=API_SERVER_RESTARTED, **batch),
        Case(
            "api_server.restarted_batch_worker",
            truth="success",
            rows=200,
            outage=API_SERVER_RESTARTED,
            **in_worker,
        ),
        Case(
            "api_server.restarted_teardown",
            truth="success",
            rows=10,
            outage=API_SERVER_RESTARTED,
            **at("teardown"),
        ),
        # Airflow runs the killed launch again: the lapsed lease is renewed, and a new worker starts.
        Case(
            "airflow.gone_launch",
            "lapsing_quick",
            "success",
            held("launch"),
            conf={"hold": "launch"},
            rows=10,
            **lapsing,
        ),
        Case("airflow.gone_ready", "lapsing_loading", "failed", ready_waits, **lapsing),
        # The task's own process is in no component's group: it finishes its rows, and then its lease lapses.
        Case("airflow.gone_batch", "lapsing", "success", batch_runs, rows=600, **lapsing),
        # Airflow runs the killed batch again, whose worker has gone.
        Case(
            "airflow.gone_batch_with_task",
            "lapsing",
            "failed",
            batch_runs,
            outage=AIRFLOW_AND_TASKS_GONE,
            freed_first=True,
        ),
        Case("airflow.gone_batch_worker", "lapsing_worker", "success", batch_runs, rows=600, **lapsing),
        Case(
            "airflow.gone_teardown",
            "lapsing_quick",
            "success",
            held("teardown"),
            conf={"hold": "teardown"},
            rows=10,
            **lapsing,
        ),
    ]


def _real() -> list[Case]:
    """With the real engine, on a Ray head that is made for the run and must end with it."""
    batch: dict[str, Any] = {"dag": "real", "when": batch_runs, "real": True}
    return [
        Case("real.success", "real_quick", "success", rows=10, real=True),
        Case("real.kill_task", truth="failed", event=kill_task("batch"), **batch),
        Case("real.supervisor", truth="failed", event=kill_process("supervisor"), **batch),
        Case("real.rank", truth="failed", event=kill_process("rank"), **batch),
        Case("real.ray_head", truth="failed", event=kill_process("gcs"), **batch),
        Case("real.ray_head_supervisor", truth="failed", event=kill_process("head"), **batch),
        Case(
            "real.airflow_gone",
            "real_lapsing_worker",
            "success",
            batch_runs,
            rows=250,
            outage=AIRFLOW_GONE,
            freed_first=True,
            real=True,
        ),
    ]


def _warm() -> list[Case]:
    """With a worker that is kept warm for 15 s: it outlives its run, and nothing outlives that."""
    running: dict[str, Any] = {"dag": "warm", "when": batch_runs}
    in_worker: dict[str, Any] = {"dag": "warm_worker", "when": batch_runs}
    loading: dict[str, Any] = {"dag": "warm_loading", "when": ready_waits}

    def at_end_of(step: str) -> dict[str, Any]:
        return {"dag": "warm_quick", "when": held(step), "conf": {"hold": step}}

    def case(name: str, truth: str, event: Any = None, **more: Any) -> Case:
        limit_s = more.pop("limit_s", AT_ONCE_S)
        return Case(f"warm.{name}", truth=truth, event=event, gone_s=KEPT_WARM_S + limit_s, **more)

    return [
        case("success", "success", dag="warm_quick", rows=10, representative=True),
        case("kill_reserve", "failed", kill_task("reserve"), **at_end_of("reserve")),
        case("kill_provision", "failed", kill_task("provision"), **at_end_of("provision")),
        case("kill_launch", "failed", kill_task("launch"), **at_end_of("launch")),
        case("kill_server_loading", "failed", kill_process("server"), **loading),
        case("kill_batch", "failed", kill_task("batch"), **running),
        case("kill_supervisor", "failed", kill_process("supervisor"), **running),
        case("kill_teardown", "failed", kill_task("teardown"), limit_s=BY_NET_S, **at_end_of("teardown")),
        case(
            "task_failed_batch_worker", "failed", lambda run: run.mark_task("answer", "failed"), **in_worker
        ),
        case("run_failed_batch", "failed", lambda run: run.mark_run("failed"), **running),
        case("run_success_batch_worker", "success", lambda run: run.mark_run("success"), **in_worker),
        case("timeout_dagrun", "failed", dag="warm_timeout"),
        case("lease_torn", "success", tear_lease, rows=200, **running),
        # The batch's process outlives Airflow and answers all rows: the next attempt finds them.
        case(
            "airflow_gone",
            "success",
            dag="warm_lapsing",
            when=batch_runs,
            rows=600,
            outage=AIRFLOW_GONE,
            freed_first=True,
        ),
    ]


CASES = [*_cases(), *_warm()]
