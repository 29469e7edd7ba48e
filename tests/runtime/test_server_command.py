"""The server's command line and environment, from the spec."""

import dataclasses

from airflow_arcadia.runtime.server_command import MIDDLEWARE, server_argv, server_env
from airflow_arcadia.worker import PlacedWorker

ONE = PlacedWorker(name="w", model="/models/m", port=21002)
TWO = dataclasses.replace(ONE, num_gpus=2, ray_address="head:6379", ray_token_file="/secrets/token")


def option(argv: list[str], name: str) -> str:
    return argv[argv.index(name) + 1]


def test_above_one_gpu_the_engine_is_tensor_parallel_over_ray():
    argv = server_argv(TWO)
    assert option(argv, "--tensor-parallel-size") == "2"
    assert option(argv, "--distributed-executor-backend") == "ray"


def test_one_gpu_needs_no_ray():
    assert "--distributed-executor-backend" not in server_argv(ONE)
    assert "RAY_ADDRESS" not in server_env(ONE, {"RAY_ADDRESS": "left:6379"}, None)


def test_the_engines_limits_are_always_explicit():
    argv = server_argv(dataclasses.replace(ONE, max_num_seqs=7, max_num_batched_tokens=9, max_model_len=11))
    limits = [option(argv, f"--max-{name}") for name in ("num-seqs", "num-batched-tokens", "model-len")]
    assert limits == ["7", "9", "11"]


def test_remote_code_is_trusted_only_when_asked():
    assert "--trust-remote-code" not in server_argv(ONE)
    assert "--trust-remote-code" in server_argv(dataclasses.replace(ONE, trust_remote_code=True))


def test_extra_arguments_come_last_so_that_they_win():
    argv = server_argv(dataclasses.replace(ONE, system_args=("--seed", "1"), extra_args=("--dtype", "half")))
    assert argv[-4:] == ["--seed", "1", "--dtype", "half"]
    assert option(argv, "--middleware") == MIDDLEWARE


def test_vllm_uses_the_address_of_the_ray_node_unless_told_otherwise():
    assert server_env(TWO, {}, "10.0.0.7")["VLLM_HOST_IP"] == "10.0.0.7"
    assert server_env(TWO, {"VLLM_HOST_IP": "10.0.0.8"}, "10.0.0.7")["VLLM_HOST_IP"] == "10.0.0.8"


def test_a_token_is_a_file_never_a_value():
    env = server_env(TWO, TWO.to_env(), None)
    assert (env["RAY_AUTH_MODE"], env["RAY_AUTH_TOKEN_PATH"]) == ("token", "/secrets/token")
    assert "RAY_AUTH_TOKEN" not in env


def test_it_listens_on_loopback_unless_a_pod_says_otherwise():
    assert option(server_argv(ONE), "--host") == "127.0.0.1"


def test_adapters_are_served_beside_the_model():
    assert "--enable-lora" not in server_argv(ONE)
    argv = server_argv(dataclasses.replace(ONE, lora_modules=("sql=/adapters/sql", "law=/adapters/law")))
    at = argv.index("--lora-modules")
    assert argv[at - 1 : at + 3] == [
        "--enable-lora",
        "--lora-modules",
        "sql=/adapters/sql",
        "law=/adapters/law",
    ]


def test_requests_name_media_only_at_allowed_hosts():
    assert option(server_argv(ONE), "--allowed-media-domains") == "none.invalid"
    allowed = ("https://images.example.com:8443/cats", "s3://bucket/rows", "/data")
    argv = server_argv(dataclasses.replace(ONE, allowed_uris=allowed))
    at = argv.index("--allowed-media-domains")
    assert argv[at + 1 : at + 3] == ["images.example.com", "--disable-uvicorn-access-log"]
    assert server_env(ONE, {}, None)["VLLM_MEDIA_URL_ALLOW_REDIRECTS"] == "0"
