"""Answer a file of prompts with a distributed vLLM worker.

Press **Trigger**, fill the form, and watch *Browse → Arcadia* while it runs. A run takes GPUs from a Ray
cluster, serves the model, answers every row of the input, and leaves nothing behind.

* **Model, GPUs, Ray cluster**: what is served, and where.
* **Input, Output**: JSON Lines in, OpenAI's batch output format out. Placeholders such as ``%Y-%m-%d`` stand
  for the run's date. A run with the same output, input and parameters goes on where the last one ended.
* **Rows**: how much to answer, what may fail, and what to do with an output that is there already.
* **Sampling**: for rows that set no value of their own. **Engine**: limits of vLLM.

For whoever installs it: the form's defaults come from ``ARCADIA_MODEL``, ``ARCADIA_INPUT``,
``ARCADIA_OUTPUT``, ``ARCADIA_NUM_GPUS``, ``ARCADIA_MAX_MODEL_LEN`` and ``ARCADIA_EXTRA_ARGS``;
``ARCADIA_SCHEDULE`` (cron or preset) makes it run by itself. Where the connection names a Kubernetes cluster,
``ARCADIA_POD`` (JSON, keys of ``PodOptions``) says how the worker's pod is made, and
``ARCADIA_RAY_CLUSTER`` (JSON, keys of ``KubeRayOptions``) how a Ray cluster is.
"""

import json
import os

import pendulum
from airflow.sdk import DAG, Asset, Param

from airflow_arcadia import ArcadiaBatchInferenceOperator, ArcadiaWorkerGroup

# A run by hand need not have a logical date, and then the template has no such name.
RUN_DATE = "(dag_run.logical_date or dag_run.run_after)"


def number(variable: str) -> int | None:
    """The whole number that an environment variable holds, or None."""
    text = os.environ.get(variable, "")
    return int(text) if text else None


PARAMS = {
    "model": Param(
        os.environ.get("ARCADIA_MODEL", "Qwen/Qwen2.5-7B-Instruct"),
        type="string",
        minLength=1,
        title="Model",
        description="Path of a model folder, or a repository id the worker can load.",
    ),
    "num_gpus": Param(
        number("ARCADIA_NUM_GPUS") or 2,
        type="integer",
        minimum=1,
        title="GPUs (NUMBER_GPUS)",
        description="Above 1: tensor parallel over that many GPUs of the Ray cluster.",
    ),
    "ray_cluster": Param(
        "0",
        type="string",
        title="Ray cluster",
        description="Index in arcadia-config (RAY_CLUSTER_INDEX), name, or auto: one with enough free GPUs.",
    ),
    "create_ray_cluster": Param(
        "if_missing",
        enum=["if_missing", "never"],
        title="Create the Ray cluster",
        description="if_missing makes one for this run where none answers: a local head, or by KubeRay.",
    ),
    "input": Param(
        os.environ.get("ARCADIA_INPUT", "s3://prompts/%Y-%m-%d.jsonl"),
        type="string",
        minLength=1,
        title="Input",
        description="URI of JSON Lines (prompt, messages, or OpenAI batch rows), CSV or Parquet.",
    ),
    "output": Param(
        os.environ.get("ARCADIA_OUTPUT", "s3://answers/%Y-%m-%d-%H%M%S.jsonl"),
        type="string",
        minLength=1,
        title="Output",
        description="URI of the answers. %H%M%S keeps two runs of one day apart.",
    ),
    "limit": Param(
        None,
        type=["null", "integer"],
        minimum=1,
        title="Limit",
        description="Answer only the first rows, to try a prompt. Empty: all rows.",
        section="Rows",
    ),
    "max_failed_rows": Param(
        None,
        type=["null", "integer"],
        minimum=0,
        title="Failed rows allowed",
        description="More failed rows than this end the run as failed. Empty: fails only if all of them do.",
        section="Rows",
    ),
    "on_change": Param(
        "fail",
        enum=["fail", "restart"],
        title="Output of other parameters",
        description="Where the output is partly answered for another input, model or parameters: fail "
        "instead of mixing them, or begin anew.",
        section="Rows",
    ),
    "overwrite": Param(
        False,
        type="boolean",
        title="Overwrite",
        description="Replace an output that is there already, whatever wrote it.",
        section="Rows",
    ),
    "max_tokens": Param(
        256,
        type="integer",
        minimum=1,
        title="max_tokens",
        description="Longest answer, in tokens.",
        section="Sampling",
    ),
    "temperature": Param(
        0.0,
        type="number",
        minimum=0,
        maximum=2,
        title="temperature",
        description="0 takes the likeliest token always; higher values vary more.",
        section="Sampling",
    ),
    "top_p": Param(
        1.0,
        type="number",
        exclusiveMinimum=0,
        maximum=1,
        title="top_p",
        description="Sample only from the likeliest tokens that make up this probability.",
        section="Sampling",
    ),
    "seed": Param(
        None,
        type=["null", "integer"],
        title="seed",
        description="Makes sampling repeatable. Empty: not set.",
        section="Sampling",
    ),
    "max_model_len": Param(
        number("ARCADIA_MAX_MODEL_LEN"),
        type=["null", "integer"],
        minimum=1,
        title="max_model_len",
        description="Longest prompt and answer together, in tokens. Empty: the model's own limit, which may "
        "need more GPU memory than there is.",
        section="Engine",
    ),
    "max_num_seqs": Param(
        256,
        type="integer",
        minimum=1,
        title="max_num_seqs",
        description="Rows that the engine works on at once.",
        section="Engine",
    ),
    "dtype": Param(
        "auto",
        enum=["auto", "bfloat16", "float16", "float32"],
        title="dtype",
        description="Precision of the weights; auto takes the model's own.",
        section="Engine",
    ),
    "extra_args": Param(
        os.environ.get("ARCADIA_EXTRA_ARGS", ""),
        type=["null", "string"],
        title="Extra arguments (EXTRA_ARGS)",
        description="Words added to vLLM's command line; they win over the fields above.",
        section="Engine",
    ),
}

with (
    DAG(
        "arcadia_batch_inference",
        description="Answer a file of prompts with a distributed vLLM worker.",
        # Without a schedule a run begins when it is triggered, and never waits behind one nobody asked for.
        schedule=os.environ.get("ARCADIA_SCHEDULE") or None,
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
        options={
            "limit": "{{ params.limit }}",
            "max_failed_rows": "{{ params.max_failed_rows }}",
            "on_change": "{{ params.on_change }}",
            "overwrite": "{{ params.overwrite }}",
        },
        # arcadia_answers_report runs after every batch, by this asset.
        outlets=[Asset("arcadia_answers")],
    )
