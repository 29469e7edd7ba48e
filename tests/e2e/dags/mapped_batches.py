"""One batch for each of several inputs, and one of a function's rows for each of several arguments.

The worker runs them itself while the tasks are deferred.
"""

import os

import pendulum
from airflow.sdk import DAG, Asset, task

from airflow_arcadia import ArcadiaBatchInferenceOperator, ArcadiaWorkerGroup

FOLDER = os.environ.get("E2E_FOLDER", "/nowhere")

with DAG("mapped_batches", schedule=None, start_date=pendulum.datetime(2026, 1, 1), catchup=False):
    with ArcadiaWorkerGroup("worker", model="org/stand-in", startup_timeout=90, poll_interval=1) as worker:
        ArcadiaBatchInferenceOperator.partial(
            task_id="answer",
            worker=worker.handle,
            run_in="worker",
            progress_interval=0.5,
            outlets=[Asset("arcadia_answers")],
        ).expand_kwargs(
            [
                {"input": f"{FOLDER}/in-{name}.jsonl", "output": f"{FOLDER}/{{{{ run_id }}}}-{name}.jsonl"}
                for name in ("a", "b")
            ]
        )

        @task.arcadia_batch(
            worker=worker.handle,
            run_in="worker",
            progress_interval=0.5,
            output=FOLDER + "/{{ run_id }}-function-{{ ti.map_index }}.jsonl",
        )
        def ask(count: int, run_id: str | None = None) -> list[str]:
            return [f"number {i} of {run_id}" for i in range(count)]

        ask.expand(count=[2, 4])
