"""`@task.llm_batch` of apache-airflow-providers-common-ai on a worker of one's own, through its Batch API.

It needs that provider (1.0 or later, with its extra `openai`), and a connection `arcadia_worker` of type
`pydanticai`: host `http://127.0.0.1:21002/v1`, and as password that of the arcadia connection (any text where
the worker has no key). The port is fixed here, so that a connection can name it.
"""

from importlib.util import find_spec

import pendulum
from airflow.sdk import DAG, task

from airflow_arcadia import ArcadiaWorkerGroup

if find_spec("airflow.providers.common.ai"):
    with DAG(
        "arcadia_llm_batch",
        schedule=None,
        start_date=pendulum.datetime(2026, 1, 1),
        catchup=False,
        tags=["arcadia"],
    ):
        with ArcadiaWorkerGroup(
            "qwen", model="Qwen/Qwen2.5-7B-Instruct", served_model_name="qwen", port=21002
        ):

            @task.llm_batch(
                llm_conn_id="arcadia_worker",
                model_id="openai:qwen",
                result_path="s3://answers/reviews/{{ ds }}",
                system_prompt="Is this review good or bad? Answer with one word.",
                max_tokens=8,
                poll_interval=30,
            )
            def judge_reviews() -> list[str]:
                return ["Works as described.", "It broke on the first day.", "I would buy it again."]

            judge_reviews()
