"""The DAGs of the browser's tests: a stand-in serves as the engine."""

from __future__ import annotations

import os
from pathlib import Path

import pendulum
from airflow.sdk import DAG

from airflow_arcadia import ArcadiaBatchInferenceOperator, ArcadiaWorkerGroup

FOLDER = Path(os.environ["BROWSER_FOLDER"])


def make(name: str, *, rows: int, run_in: str = "task", extra_args: str = "") -> DAG:
    """One worker and one batch of so many rows."""
    with (
        DAG(name, schedule=None, start_date=pendulum.datetime(2026, 1, 1), catchup=False) as dag,
        ArcadiaWorkerGroup(
            "qwen",
            model="org/stand-in",
            poll_interval=0.5,
            teardown_retries=0,
            engine={"extra_args": extra_args},
        ) as worker,
    ):
        ArcadiaBatchInferenceOperator(
            task_id="answer",
            worker=worker.handle,
            input=str(FOLDER / f"in-{rows}.jsonl"),
            output=str(FOLDER / "out" / "{{ run_id }}.jsonl"),
            run_in=run_in,
            progress_interval=1.0,
            options={"max_in_flight": 4},
        )
    return dag


slow = make("nightly_answers", rows=3000, extra_args="--delay 0.8")
in_task = make("answers_in_task", rows=3000, extra_args="--delay 0.8")
in_worker = make("answers_in_worker", rows=3000, run_in="worker", extra_args="--delay 0.8")
some_fail = make("some_rows_fail", rows=10, extra_args=f"--reject-while {FOLDER / 'poison'}")
