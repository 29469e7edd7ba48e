"""The worker's contract: what is written into its environment is what is read there."""

import dataclasses
import json

import pytest

from airflow_arcadia.exceptions import ArcadiaConfigError
from airflow_arcadia.worker import (
    EngineOptions,
    PlacedWorker,
    Placement,
    RayConnection,
    WorkerHandle,
    WorkerSpec,
    parse_num_gpus,
)

FULL = PlacedWorker(
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
    hang_timeout=45.0,
    hang_restart_timeout=90.0,
    idle_timeout=600.0,
    api_key_file="/secrets/key",
    ray_token_file="/secrets/token",
    lease_file="/state/lease.json",
    system_args=("--seed", "1"),
    extra_args=("--hf-overrides", '{"a": "b c"}'),
    lora_modules=("sql=/adapters/sql", "law=/adapters/a folder"),
    allowed_uris=("s3://bucket/prompts", "/data/a folder"),
    max_file_bytes=2**20,
    max_files_bytes=2**30,
    file_lifetime=3600.0,
    batch_token_file="/secrets/batch-token",
    storage_options_file="/secrets/storage-options",
    fastchat_port=21003,
)


def test_the_environment_carries_the_whole_spec():
    assert PlacedWorker.from_env(FULL.to_env()) == FULL


def test_every_field_of_the_spec_travels():
    changed = {f.name for f in dataclasses.fields(PlacedWorker) if getattr(FULL, f.name) != f.default}
    assert changed >= {f.name for f in dataclasses.fields(PlacedWorker)} - {"additional_envs"}


def test_arcadias_variables_are_always_both_there():
    env = PlacedWorker(name="w", model="m").to_env()
    assert (env["NUMBER_GPUS"], env["RAY_CLUSTER_INDEX"]) == ("1", "0")


def test_additional_envs_come_last_and_win():
    spec = dataclasses.replace(FULL, additional_envs={"NUMBER_GPUS": "4", "NCCL_DEBUG": "INFO"})
    env = spec.to_env()
    assert (env["NUMBER_GPUS"], env["NCCL_DEBUG"]) == ("4", "INFO")
    assert PlacedWorker.from_env(env).tensor_parallel_size == 4


def test_one_gpu_needs_no_ray_and_more_need_it():
    assert not PlacedWorker(name="w", model="m", num_gpus=1).uses_ray
    assert PlacedWorker(name="w", model="m", num_gpus=2).uses_ray


def test_no_secret_is_in_the_environment():
    # Only paths of files that hold secrets: vLLM's Ray executor copies the environment to every rank.
    assert {k for k in FULL.to_env() if "KEY" in k or ("TOKEN" in k and "BATCHED" not in k)} == {
        "ARCADIA_API_KEY_FILE",
        "ARCADIA_BATCH_TOKEN_FILE",
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
        ({"port": 70000}, r"worker\.port is 70000\. Set it to at most 65535"),
        ({"max_num_seqs": 0}, "max_num_seqs"),
        ({"gpu_memory_utilization": 1.5}, "gpu_memory_utilization is 1.5"),
        ({"drain_seconds": "nan"}, "drain_seconds is 'nan', not a finite number"),
        ({"drain_seconds": -5}, "drain_seconds is -5"),
    ],
)
def test_a_spec_that_cannot_work_is_refused(wrong: dict, said: str):
    with pytest.raises(ArcadiaConfigError, match=said):
        PlacedWorker(**{"name": "w", "model": "m", **wrong})


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("ARCADIA_PORT", "http"),
        ("EXTRA_ARGS", "a 'b"),
        ("SYSTEM_ARGS", '"'),
        ("ARCADIA_DRAIN_SECONDS", "nan"),
        ("ARCADIA_DRAIN_SECONDS", "inf"),
        ("ARCADIA_DRAIN_SECONDS", "-5"),
        ("ARCADIA_MAX_NUM_SEQS", "0"),
        ("GPU_MEMORY_UTILIZATION", "NaN"),
        ("ARCADIA_TRUST_REMOTE_CODE", "perhaps"),
    ],
)
def test_a_variable_that_is_not_valid_is_named(variable: str, text: str):
    with pytest.raises(ArcadiaConfigError, match=variable):
        PlacedWorker.from_env({variable: text, "FASTCHAT_MODEL_NAME": "m"})


@pytest.mark.parametrize(("text", "trusted"), [("1", True), ("true", True), ("0", False), ("", False)])
def test_remote_code_is_trusted_only_where_the_variable_says_so(text: str, trusted: bool):
    env = {"ARCADIA_TRUST_REMOTE_CODE": text, "FASTCHAT_MODEL_NAME": "m"}
    assert PlacedWorker.from_env(env).trust_remote_code is trusted


def test_a_spec_says_what_is_served_and_a_placement_where():
    spec = WorkerSpec(name="w", model="m")
    placement = Placement(port=21002, api_key_file="/secrets/key")
    placed = spec.at(placement)
    assert (placed.url, placed.api_key_file) == ("http://127.0.0.1:21002", "/secrets/key")
    assert {f.name for f in dataclasses.fields(spec)}.isdisjoint(vars(placement))
    assert placed.at(Placement(port=1)).url == "http://127.0.0.1:1"


def test_every_option_of_the_engine_is_a_field_of_the_spec():
    assert set(EngineOptions.__annotations__) <= {f.name for f in dataclasses.fields(WorkerSpec)}


def test_the_handle_goes_through_json_unchanged():
    ray = RayConnection(0, "a", "h:1", "http://h:2", "2.60.0", "3.11.7", 2.0, 2.0, created=True)
    handle = WorkerHandle("w", "lease", "process", "http://u", "m", 2, ray=ray, where={"pid": 1})
    assert WorkerHandle.from_dict(json.loads(json.dumps(handle.to_dict()))) == handle
