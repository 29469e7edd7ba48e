"""Makes the DAGs of the lifecycle matrix. A run's ``conf`` says where it stops (``hold``) or fails."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pendulum
from airflow.sdk import DAG
from airflow.sdk.bases.operator import BaseOperator

from airflow_arcadia.operators.batch import ArcadiaBatchInferenceOperator
from airflow_arcadia.task_groups.worker import ArcadiaWorkerGroup

FOLDER = Path(os.environ.get("LIFECYCLE_FOLDER", "/nowhere"))
HOLD_S = 300.0
LAPSING_S = 40.0
"""A lease that lapses within a case, and is longer than the gap between two tasks on a busy machine."""


def stop_at(operator: Any, step: str, *, before: bool = False) -> None:
    """Let the run's conf hold or fail the operator, once it has done its work, or before."""
    if before:
        operator._pre_execute_hook = lambda context: _stop(context, step)
    else:
        operator._post_execute_hook = lambda context, result: _stop(context, step)


def _stop(context: Any, step: str) -> None:
    conf = context["dag_run"].conf or {}
    marker = FOLDER / "at" / context["run_id"] / step
    marker.parent.mkdir(parents=True, exist_ok=True)
    marker.touch()
    if conf.get("fail") == step:
        raise RuntimeError(f"{step} fails, as it was told to")
    deadline = time.monotonic() + HOLD_S
    released = marker.with_name("released")
    while conf.get("hold") == step and not released.exists() and time.monotonic() < deadline:
        time.sleep(0.2)


class Sleep(BaseOperator):
    """A user's own task."""

    def __init__(self, seconds: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.seconds = seconds

    def execute(self, context: Any) -> None:
        """Sleep, as work of another kind would take its time."""
        time.sleep(self.seconds)


def make(
    name: str,
    *,
    run_in: str = "task",
    rows: int = 200,
    extra_args: str = "--delay 0.4",
    deferrable: bool = True,
    lease_duration: float = 3600,
    sleep: float = 0.0,
    dagrun_timeout: float | None = None,
    keep_warm: str | None = None,
    ready: dict[str, Any] | None = None,
    batch: dict[str, Any] | None = None,
    group: dict[str, Any] | None = None,
) -> DAG:
    """One DAG: a worker, a batch, and where asked for a task of the user's own before it.

    :param ready: attributes of the sensor.
    :param batch: further parameters of the batch.
    :param group: further parameters of the group.
    """
    with DAG(
        f"life_{name}",
        schedule=None,
        start_date=pendulum.datetime(2026, 1, 1),
        catchup=False,
        max_active_runs=50,
        dagrun_timeout=timedelta(seconds=dagrun_timeout) if dagrun_timeout else None,
        default_args={"retries": 0},
    ) as dag:
        parameters: dict[str, Any] = {
            "model": "org/stand-in",
            "deferrable": deferrable,
            "lease_duration": lease_duration,
            "teardown_retries": 0,
            "startup_timeout": 90,
            "poll_interval": 0.5,
            "engine": {"extra_args": extra_args},
            "keep_warm": keep_warm,
        }
        with ArcadiaWorkerGroup("worker", **parameters | (group or {})) as worker:
            answer = ArcadiaBatchInferenceOperator(
                task_id="answer",
                worker=worker.handle,
                input=str(FOLDER / f"in-{rows}.jsonl"),
                output=str(FOLDER / "out" / "{{ run_id }}.jsonl"),
                run_in=run_in,
                progress_interval=1.0,
                **{"options": {"max_in_flight": 4}} | (batch or {}),
            )
            if sleep:
                worker.ready >> Sleep(seconds=sleep, task_id="long") >> answer
        stop_at(worker.reserve, "reserve")
        stop_at(worker.provision, "provision")
        for launch in worker.launches:
            stop_at(launch, "launching", before=True)
            stop_at(launch, "launch")
        stop_at(answer, "batch")
        stop_at(worker.teardown, "teardown", before=True)
        for sensor in worker.ready:
            for key, value in (ready or {}).items():
                setattr(sensor, key, value)
    return dag


QUICK: dict[str, Any] = {"rows": 10}
TIGHT = {"execution_timeout": timedelta(seconds=8)}
LATE = {"execution_timeout": timedelta(seconds=50)}
HELD_LOADING: dict[str, Any] = {"extra_args": f"--loading-at {FOLDER}/at/{{{{ run_id }}}}/loading", **QUICK}
"""The model is loaded once the run is released."""
HELD_BATCH: dict[str, Any] = {
    "extra_args": f"--delay 0.4 --answering-at {FOLDER}/at/{{{{ run_id }}}}/answering"
}
"""The batch gets no further than its first rows until the run is released."""
ALONE = "--of {{ run_id }}"
"""Makes every run's worker another one."""
WARM: dict[str, Any] = {"keep_warm": "15s", "extra_args": f"--delay 0.4 {ALONE}"}
SPECS: dict[str, dict[str, Any]] = {
    "task": {},
    "worker": {"run_in": "worker"},
    "quick": QUICK,
    "quick_worker": dict(run_in="worker", **QUICK),
    "loading": dict(extra_args="--load 60", **QUICK),
    "loading_poke": dict(extra_args="--load 60", deferrable=False, **QUICK),
    "dies": dict(extra_args="--die", **QUICK),
    "timeout": {"rows": 900, "dagrun_timeout": 20},
    "timeout_worker": {"rows": 900, "run_in": "worker", "dagrun_timeout": 20},
    "execution_ready": dict(extra_args="--load 60", ready=TIGHT, **QUICK),
    "execution_batch": {"rows": 900, "run_in": "worker", "batch": TIGHT},
    "short_lease": {"rows": 600, "lease_duration": 25},
    "short_lease_worker": {"rows": 600, "lease_duration": 25, "run_in": "worker"},
    "long_task": dict(lease_duration=25, sleep=32, **QUICK),
    "lapsing": {"rows": 600, "lease_duration": LAPSING_S},
    "lapsing_worker": {"rows": 600, "lease_duration": LAPSING_S, "run_in": "worker"},
    "lapsing_quick": dict(lease_duration=LAPSING_S, **QUICK),
    "lapsing_loading": dict(extra_args="--load 60", lease_duration=LAPSING_S, ready=LATE, **QUICK),
    "late_worker": {"rows": 900, "run_in": "worker", "batch": {"batch_timeout": 30}},
    "late_finished_worker": {
        "rows": 200,
        "lease_duration": LAPSING_S,
        "run_in": "worker",
        "batch": {"batch_timeout": 100},
    },
    "loading_a_while": dict(extra_args="--load 15", **QUICK),
    "paused": {"rows": 150, "lease_duration": LAPSING_S},
    "paused_worker": {"rows": 150, "lease_duration": LAPSING_S, "run_in": "worker"},
    "warm_quick": WARM | QUICK,
    "warm": WARM,
    "warm_worker": WARM | {"run_in": "worker"},
    "warm_loading": WARM | QUICK | {"extra_args": f"--load 60 {ALONE}"},
    "warm_timeout": WARM | {"rows": 900, "dagrun_timeout": 20},
    "warm_lapsing": WARM | {"rows": 600, "lease_duration": 20},
    "warm_shared": {"keep_warm": "30s", "extra_args": "--delay 0.4 --load 8", **QUICK},
    "held_loading": HELD_LOADING,
    "held_batch": HELD_BATCH,
    "held_batch_worker": dict(run_in="worker", **HELD_BATCH),
}
"""Name without a prefix → arguments of :func:`make`."""


def make_all(prefix: str = "", *names: str, **more: Any) -> list[DAG]:
    """All DAGs, or those of these names, which then begin with ``prefix``.

    :param more: further arguments of :func:`make`.
    """
    return [make(prefix + name, **SPECS[name], **more) for name in names or SPECS]
