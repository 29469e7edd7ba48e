"""The smallest DAG: a worker, one batch, nothing left behind."""

import pendulum
from airflow.sdk import DAG

from airflow_arcadia import ArcadiaBatchInferenceOperator, ArcadiaWorkerGroup

with DAG("nightly_answers", schedule="@daily", start_date=pendulum.datetime(2026, 1, 1), catchup=False):
    with ArcadiaWorkerGroup("qwen", model="Qwen/Qwen2.5-7B-Instruct", num_gpus=2, ray_cluster=0) as worker:
        ArcadiaBatchInferenceOperator(
            task_id="answer",
            worker=worker.handle,
            input="s3://prompts/{{ ds }}.jsonl",
            output="s3://answers/{{ ds }}.jsonl",
        )
