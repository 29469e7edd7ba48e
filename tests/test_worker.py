"""The worker's contract: what is written into its environment is what is read there."""

import dataclasses
import json

import pytest

from airflow_arcadia.exceptions import ArcadiaConfigError
from airflow_arcadia.worker import RayConnection, WorkerHandle, WorkerSpec, parse_num_gpus

FULL = WorkerSpec(
    name="qwen-1",
    model="/data/models/qwen",
    served_model_name="qwen",
    num_gpus=2,
    ray_cluster_index=1,
    ray_address="head:6379",
    ray_dashboard_url="http://head:8265",
    node_gpus=0,
    ray_version="2.60.0",
    python_version="3.11.7",
    controller_address="http://controller:21001",
    host="0.0.0.0",
    port=21002,
    advertised_address="http://qwen-worker.ns:21002",
    dtype="bfloat16",
    max_model_len=4096,
    max_num_seqs=128,
    max_num_batched_tokens=4096,
    gpu_memory_utilization=0.8,
    trust_remote_code=True,
    drain_seconds=30.0,
    api_key_file="/secrets/key",
    ray_token_file="/secrets/token",
    lease_file="/state/lease.json",
    system_args=("--seed", "1"),
    extra_args=("--hf-overrides", '{"a": "b c"}'),
)


def test_the_environment_carries_the_whole_spec():
    assert WorkerSpec.from_env(FULL.to_env()) == FULL


def test_every_field_of_the_spec_travels():
    changed = {f.name for f in dataclasses.fields(WorkerSpec) if getattr(FULL, f.name) != f.default}
    assert changed >= {f.name for f in dataclasses.fields(WorkerSpec)} - {"additional_envs"}


def test_arcadias_variables_are_always_both_there():
    env = WorkerSpec(name="w", model="m").to_env()
    assert (env["NUMBER_GPUS"], env["RAY_CLUSTER_INDEX"]) == ("1", "0")


def test_additional_envs_come_last_and_win():
    spec = dataclasses.replace(FULL, additional_envs={"NUMBER_GPUS": "4", "NCCL_DEBUG": "INFO"})
    env = spec.to_env()
    assert (env["NUMBER_GPUS"], env["NCCL_DEBUG"]) == ("4", "INFO")
    assert WorkerSpec.from_env(env).tensor_parallel_size == 4


def test_one_gpu_needs_no_ray_and_more_need_it():
    assert not WorkerSpec(name="w", model="m", num_gpus=1).uses_ray
    assert WorkerSpec(name="w", model="m", num_gpus=2).uses_ray


def test_no_secret_is_in_the_environment():
    # Only paths of files that hold secrets: vLLM's Ray executor copies the environment to every rank.
    assert {k for k in FULL.to_env() if "KEY" in k or ("TOKEN" in k and "BATCHED" not in k)} == {
        "ARCADIA_API_KEY_FILE",
        "RAY_AUTH_TOKEN_PATH",
    }


@pytest.mark.parametrize("value", ["", "two", "0", 0, -1, "1.5", True, None])
def test_number_gpus_must_be_a_positive_whole_number(value: object):
    with pytest.raises(ArcadiaConfigError, match="NUMBER_GPUS"):
        parse_num_gpus(value)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"model": ""}, "no model"),
        ({"port": 70000}, "Port 70000"),
        ({"max_num_seqs": 0}, "max_num_seqs"),
        ({"gpu_memory_utilization": 1.5}, "GPU_MEMORY_UTILIZATION"),
    ],
)
def test_a_spec_that_cannot_work_is_refused(wrong: dict, said: str):
    with pytest.raises(ArcadiaConfigError, match=said):
        WorkerSpec(**{"name": "w", "model": "m", **wrong})


def test_a_variable_that_cannot_be_parsed_is_named():
    with pytest.raises(ArcadiaConfigError, match="ARCADIA_PORT"):
        WorkerSpec.from_env({"ARCADIA_PORT": "http", "FASTCHAT_MODEL_NAME": "m"})


def test_the_handle_goes_through_json_unchanged():
    ray = RayConnection(0, "a", "h:1", "http://h:2", "2.60.0", "3.11.7", 2.0, 2.0, created=True)
    handle = WorkerHandle("w", "lease", "process", "http://u", "m", 2, ray=ray, where={"pid": 1})
    assert WorkerHandle.from_dict(json.loads(json.dumps(handle.to_dict()))) == handle
