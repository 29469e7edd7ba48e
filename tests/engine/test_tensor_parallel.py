"""A real worker, tensor parallel over two real Ray workers, asked in every protocol."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import requests

from airflow_arcadia.config import ArcadiaConfig
from airflow_arcadia.ports import free_port
from airflow_arcadia.ray_cluster.local import LocalRayBackend
from airflow_arcadia.ray_cluster.provision import provision
from airflow_arcadia.ray_dashboard import ClusterFacts, RayDashboard
from airflow_arcadia.readiness import Failed, Ready, Waiting
from airflow_arcadia.worker import RayConnection
from tests.conftest import wait_for
from tests.engine.serving import Served, fastchat, launched, served
from tests.ray_cluster.real_ray import RealRay, real_ray

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]
PROMPTS = ("import json", "def copy(src, dst):", "The quick brown fox", "class")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engine")


@pytest.fixture(scope="module")
def head(folder: Path, worker_python: str) -> Iterator[RealRay]:
    with real_ray(folder / "ray", worker_python) as running:
        yield running


@pytest.fixture(scope="module")
def ray(head: RealRay, worker_python: str, folder: Path) -> RayConnection:
    return connect(head.config, worker_python, folder)


def connect(config: ArcadiaConfig, worker_python: str, folder: Path) -> RayConnection:
    from airflow_arcadia.lease_store import LeaseStore

    store = LeaseStore(folder / "connect")
    return provision(config, 0, 2, lease="unowned", backend=LocalRayBackend(store, worker_python))


@pytest.fixture(scope="module")
def controller_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def worker(
    ray: RayConnection, worker_python: str, tiny_model: str, folder: Path, controller_port: int
) -> Iterator[Served]:
    """Tensor parallel over Ray; its controller comes late, and heartbeats are fast."""
    with launched(
        folder / "tp2",
        worker_python,
        tiny_model,
        ray=ray,
        served_model_name="tiny",
        controller_address=f"http://127.0.0.1:{controller_port}",
        additional_envs={"FASTCHAT_WORKER_HEART_BEAT_INTERVAL": "0.5"},
    ) as running:
        wait_for(lambda: "does not answer" in running.log, 240, "the first attempt to register")
        yield running


@pytest.fixture
def controller(worker: Served, controller_port: int, worker_python: str, tmp_path: Path) -> Iterator[str]:
    """A fresh controller for every test: to the worker it has restarted with an empty memory."""
    with fastchat("controller", worker_python, tmp_path, port=controller_port) as url:
        wait_for(lambda: models(url) == ["tiny"], 30, "the worker to be listed")
        yield url


def models(controller: str) -> list[str]:
    return list(requests.post(f"{controller}/list_models", timeout=10).json()["models"])


def facts(ray: RayConnection) -> ClusterFacts:
    return asyncio.run(RayDashboard(ray.dashboard_url).facts())


def test_without_its_controller_the_worker_waits_and_says_so(worker: Served):
    outcome = worker.look()
    assert isinstance(outcome, Waiting)
    assert "controller" in outcome.what
    late = worker.look(timeout_s=0)
    assert isinstance(late, Failed)
    assert "the controller to list the model" in late.what


def test_with_its_controller_the_worker_is_ready(worker: Served, controller: str):
    assert isinstance(worker.look(), Ready)


def test_its_ranks_are_two_bundles_of_one_gpu(worker: Served, ray: RayConnection):
    seen = facts(ray)
    created = [group for group in seen.placement_groups if group.state == "CREATED"]
    assert [list(map(dict, group.bundles)) for group in created] == [[{"GPU": 1.0}, {"GPU": 1.0}]]
    assert (seen.gpus_total, seen.gpus_free) == (2.0, 0.0)


def test_two_ranks_generate_the_same_text_as_one(
    worker: Served, worker_python: str, tiny_model: str, folder: Path
):
    with served(folder / "tp1", worker_python, tiny_model, api_key="the-key") as single:
        for prompt in PROMPTS:
            assert worker.complete(prompt) == single.complete(prompt)
        check_the_api_key(single)
        check_that_sigterm_lets_requests_end(single)
        assert single.leftovers == []


def check_the_api_key(single: Served) -> None:
    """Both protocols ask for the key; probes and the controller's one call do not."""
    for path in (
        "/v1/completions",
        "/v1/models",
        "/worker_generate",
        "/worker_generate_stream",
        "/count_token",
    ):
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            answer = requests.post(single.url + path, json={"prompt": "a"}, headers=headers, timeout=10)
            assert answer.status_code == 401, path
    assert single.post("/worker_generate", {"prompt": "a", "max_new_tokens": 1}).json()["error_code"] == 0
    assert requests.get(f"{single.url}/health", timeout=10).status_code == 200
    assert requests.post(f"{single.url}/worker_get_status", timeout=10).json()["model_names"]


def check_that_sigterm_lets_requests_end(single: Served) -> None:
    """A running request gets its whole answer; nothing is left."""
    body = {"model": single.handle.served_model_name, "prompt": "import", "max_tokens": 400}
    body |= {"temperature": 0, "ignore_eos": True, "stream": True, "stream_options": {"include_usage": True}}
    parts = single.post("/v1/completions", body, stream=True).iter_lines()
    assert next(parts).startswith(b"data: "), "its first token is there: it runs"
    os.kill(single.handle.where["pid"], signal.SIGTERM)
    *_, last, done = [part.removeprefix(b"data: ") for part in parts if part]
    assert done == b"[DONE]"
    assert json.loads(last)["usage"]["completion_tokens"] == 400
    wait_for(lambda: single.look().__class__ is Failed, 30, "the worker to end")
    assert "draining" in single.log
    assert "arcadia: stopped" in single.log


def test_fastchats_protocol_answers_whole_and_as_a_stream(worker: Served):
    params = {"model": "tiny", "prompt": "import", "temperature": 0, "max_new_tokens": 12, "echo": False}
    whole = worker.post("/worker_generate", params).json()
    assert whole["error_code"] == 0
    assert whole["usage"]["completion_tokens"] == 12
    streamed = worker.post("/worker_generate_stream", params, stream=True)
    parts = [json.loads(part) for part in streamed.content.split(b"\0") if part]
    assert len(parts) > 1  # how many tokens a part has depends on how fast they are made
    assert parts[-1]["text"] == whole["text"] == worker.complete("import", 12)
    assert all(after["text"].startswith(before["text"]) for before, after in itertools.pairwise(parts))


def test_fastchats_other_calls_answer(worker: Served):
    assert worker.post("/worker_get_status", {}).json()["model_names"] == ["tiny"]
    assert worker.post("/count_token", {"prompt": "import json"}).json()["count"] > 0
    assert worker.post("/model_details", {}).json() == {"context_length": 512}
    conversation = worker.post("/worker_get_conv_template", {}).json()["conv"]
    assert conversation["roles"] == ["<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"]
    assert (conversation["stop_str"], conversation["sep2"]) == ("<|im_end|>", "<|im_end|>\n")
    assert "system message" in worker.log


@pytest.mark.parametrize(
    ("path", "params", "code"),
    [
        ("/worker_generate", {}, 40001),
        ("/worker_generate", {"prompt": "a " * 2000}, 40303),
        ("/worker_generate", {"prompt": "a", "model": "other"}, 40301),
        ("/worker_generate_stream", {"prompt": "a " * 2000}, 40303),
        ("/worker_generate", {"prompt": "a", "temperature": -1, "top_p": 7}, 40001),
    ],
)
def test_a_request_that_cannot_be_answered_gets_fastchats_code(
    worker: Served, path: str, params: dict, code: int
):
    answer = worker.post(path, params)
    assert json.loads(answer.content.rstrip(b"\0"))["error_code"] == code


def test_fastchats_own_api_server_works_against_it(
    worker: Served, controller: str, worker_python: str, tmp_path: Path
):
    """Whole answers: its streams fail in itself on pydantic 2 (``.json(ensure_ascii=…)``)."""
    with fastchat("openai_api_server", worker_python, tmp_path, "--controller-address", controller) as url:
        body = {"model": "tiny", "prompt": "import json", "temperature": 0, "max_tokens": 12}
        answer = requests.post(f"{url}/v1/completions", json=body, timeout=60)
        assert answer.json()["choices"][0]["text"] == worker.complete("import json", 12)
        chat = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5}
        answer = requests.post(f"{url}/v1/chat/completions", json=chat, timeout=60)
        assert answer.json()["usage"]["completion_tokens"] == 5


def test_the_controllers_proxy_streams_through_the_worker_protocol(worker: Served, controller: str):
    params = {"model": "tiny", "prompt": "import", "temperature": 0, "max_new_tokens": 8, "echo": False}
    answer = requests.post(f"{controller}/worker_generate_stream", json=params, timeout=60)
    parts = [json.loads(part) for part in answer.content.split(b"\0") if part]
    assert parts[-1]["text"] == worker.complete("import", 8)


def a_rank() -> psutil.Process:
    """One of the two processes that compute; processes that end meanwhile are passed over."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if "RayWorkerProc" in " ".join(process.cmdline() or [process.name()]):
                return process
    raise AssertionError("no rank is running")


def test_killing_a_rank_ends_the_worker_with_its_reason_and_frees_the_gpus(
    worker: Served, controller: str, ray: RayConnection
):
    a_rank().kill()  # as the kernel's out-of-memory killer does
    wait_for(lambda: isinstance(worker.look(), Failed), 60, "the worker to end")
    failed = worker.look()
    assert isinstance(failed, Failed)
    assert "ended" in failed.what
    assert "exit code 0" not in failed.sentences
    assert failed.log_tail
    wait_for(lambda: models(controller) == [], 20, "the controller to forget the worker")
    wait_for(lambda: facts(ray).gpus_free == 2.0, 20, "the GPUs to be free")
    assert worker.end() == []
    assert worker.leftovers == []


def test_a_worker_that_crashes_while_loading_is_named_within_three_seconds_of_its_death(
    ray: RayConnection, worker_python: str, tiny_model: str, folder: Path
):
    args = ("--no-such-flag",)
    with launched(folder / "crash", worker_python, tiny_model, ray=ray, extra_args=args) as crashing:
        process = psutil.Process(crashing.handle.where["pid"])
        process.wait(120)
        died = time.monotonic()
        outcome = crashing.look()
        assert time.monotonic() - died < 3
        assert isinstance(outcome, Failed)
        assert "--no-such-flag" in outcome.sentences
        assert crashing.leftovers == []


def test_a_killed_supervisor_leaves_nothing_though_nobody_tears_it_down(
    ray: RayConnection, worker_python: str, tiny_model: str, folder: Path
):
    with (
        fastchat("controller", worker_python, folder) as controller,
        served(
            folder / "orphaned",
            worker_python,
            tiny_model,
            ray=ray,
            served_model_name="tiny",
            controller_address=controller,
        ) as orphaned,
    ):
        assert models(controller) == ["tiny"]
        assert len([name for name in orphaned.leftovers if "EngineCore" in name]) == 1
        psutil.Process(orphaned.handle.where["pid"]).kill()
        wait_for(lambda: orphaned.leftovers == [], 20, "the end of its processes and its shared memory")
        wait_for(lambda: facts(ray).gpus_free == 2.0, 20, "the GPUs to be free")
        wait_for(lambda: models(controller) == [], 20, "the controller to forget the worker")
        outcome = orphaned.look()
        assert isinstance(outcome, Failed)
        assert "the supervisor, process" in outcome.what


def test_a_killed_worker_leaves_nothing_once_torn_down(
    ray: RayConnection, worker_python: str, tiny_model: str, folder: Path
):
    with served(folder / "killed", worker_python, tiny_model, ray=ray) as killed:
        psutil.Process(killed.handle.where["pid"]).kill()
        assert killed.end() == []
        assert killed.leftovers == []
        assert not [group for group in facts(ray).placement_groups if group.state != "REMOVED"]
        wait_for(lambda: facts(ray).gpus_free == 2.0, 20, "Ray to count the GPUs as free")
