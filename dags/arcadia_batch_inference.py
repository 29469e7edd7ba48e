"""Batch inference, scheduled daily or triggered by hand with a form.

Defaults come from the environment of Airflow's components, so that the file is used as it is:
``ARCADIA_MODEL``, ``ARCADIA_INPUT``, ``ARCADIA_OUTPUT``, ``ARCADIA_NUM_GPUS``. Input and output may carry
strftime placeholders (``%Y-%m-%d``) of the run's date. Where the connection names a Kubernetes cluster,
``ARCADIA_POD`` (JSON, keys of ``PodOptions``) says how the worker's pod is made, and
``ARCADIA_RAY_CLUSTER`` (JSON, keys of ``KubeRayOptions``) how a Ray cluster is.
"""

import json
import os

import pendulum
from airflow.sdk import DAG, Param

from airflow_arcadia import ArcadiaBatchInferenceOperator, ArcadiaWorkerGroup

# A run by hand need not have a logical date, and then the template has no such name.
RUN_DATE = "(dag_run.logical_date or dag_run.run_after)"

PARAMS = {
    "model": Param(
        os.environ.get("ARCADIA_MODEL", "Qwen/Qwen2.5-7B-Instruct"),
        type="string",
        title="Model",
        description="Path of a model folder, or a repository id the worker can load.",
    ),
    "num_gpus": Param(
        int(os.environ.get("ARCADIA_NUM_GPUS", "2")),
        type="integer",
        minimum=1,
        title="GPUs (NUMBER_GPUS)",
        description="Above 1: tensor parallel over that many GPUs of the Ray cluster.",
    ),
    "ray_cluster": Param(
        "0",
        type="string",
        title="Ray cluster",
        description="Index in arcadia-config (RAY_CLUSTER_INDEX), name, or auto.",
    ),
    "create_ray_cluster": Param(
        "if_missing",
        enum=["if_missing", "never"],
        title="Create the Ray cluster",
        description="if_missing starts a local head where nothing answers at a loopback address.",
    ),
    "input": Param(
        os.environ.get("ARCADIA_INPUT", "s3://prompts/%Y-%m-%d.jsonl"),
        type="string",
        title="Input",
        description="URI of JSON Lines: prompt, messages, or OpenAI batch rows.",
    ),
    "output": Param(
        os.environ.get("ARCADIA_OUTPUT", "s3://answers/%Y-%m-%d.jsonl"),
        type="string",
        title="Output",
        description="URI of the answers, in OpenAI's batch output format.",
    ),
    "max_tokens": Param(256, type="integer", minimum=1, title="max_tokens", section="Sampling"),
    "temperature": Param(0.0, type="number", minimum=0, maximum=2, title="temperature", section="Sampling"),
    "top_p": Param(1.0, type="number", exclusiveMinimum=0, maximum=1, title="top_p", section="Sampling"),
    "seed": Param(None, type=["null", "integer"], title="seed", section="Sampling"),
    "max_model_len": Param(
        None, type=["null", "integer"], minimum=1, title="max_model_len", section="Engine"
    ),
    "max_num_seqs": Param(256, type="integer", minimum=1, title="max_num_seqs", section="Engine"),
    "dtype": Param("auto", type="string", title="dtype", section="Engine"),
    "extra_args": Param(
        os.environ.get("ARCADIA_EXTRA_ARGS", ""),
        type=["null", "string"],
        title="Extra arguments (EXTRA_ARGS)",
        description="Words added to vLLM's command line.",
        section="Engine",
    ),
}

with (
    DAG(
        "arcadia_batch_inference",
        description="Answer a file of prompts with a distributed vLLM worker.",
        schedule="@daily",
        start_date=pendulum.datetime(2026, 1, 1),
        catchup=False,
        max_active_runs=1,
        params=PARAMS,
        # Numbers and null must reach the operators as such, not as text.
        render_template_as_native_obj=True,
        doc_md=__doc__,
        tags=["arcadia", "llm", "batch"],
    ),
    ArcadiaWorkerGroup(
        "worker",
        model="{{ params.model }}",
        num_gpus="{{ params.num_gpus }}",
        ray_cluster="{{ params.ray_cluster }}",
        create="{{ params.create_ray_cluster }}",
        ray_cluster_spec={
            "num_gpus": "{{ params.num_gpus }}",
            **json.loads(os.environ.get("ARCADIA_RAY_CLUSTER", "{}")),
        },
        pod=json.loads(os.environ.get("ARCADIA_POD", "null")),
        engine={
            "dtype": "{{ params.dtype }}",
            "max_model_len": "{{ params.max_model_len }}",
            "max_num_seqs": "{{ params.max_num_seqs }}",
            "extra_args": "{{ params.extra_args or '' }}",
        },
    ) as worker,
):
    ArcadiaBatchInferenceOperator(
        task_id="answer",
        worker=worker.handle,
        input=f"{{{{ {RUN_DATE}.strftime(params.input) }}}}",
        output=f"{{{{ {RUN_DATE}.strftime(params.output) }}}}",
        parameters={
            "max_tokens": "{{ params.max_tokens }}",
            "temperature": "{{ params.temperature }}",
            "top_p": "{{ params.top_p }}",
            "seed": "{{ params.seed }}",
        },
    )
