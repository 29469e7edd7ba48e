"""``docker compose up`` ends in an Airflow whose demo DAG succeeds, tensor parallel over two ranks.

Builds gigabytes, and takes ten minutes and more: `make test-compose` runs it where an engine runs containers.
"""

from __future__ import annotations

import json
import os
import urllib.error
from collections.abc import Iterator

import pytest

from airflow_arcadia.batch.openai_format import is_answered
from tests.compose.bases import NoBaseImagesError, base_images
from tests.compose.engine import Engine, find_engine
from tests.compose.stack import Stack, running
from tests.conftest import ROOT, wait_for

pytestmark = [
    pytest.mark.timeout(5400),
    pytest.mark.skipif(not os.environ.get("ARCADIA_TEST_COMPOSE"), reason="make test-compose runs it"),
]
DAG = "arcadia_batch_inference"
GROUP = "worker"
SERVICES = ("postgres", "airflow", "controller")


@pytest.fixture(scope="module")
def engine() -> Engine:
    found = find_engine()
    if isinstance(found, str):
        pytest.skip(found)
    return found


@pytest.fixture(scope="module")
def stack(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    try:
        images = base_images(engine)
    except NoBaseImagesError as error:
        pytest.skip(str(error))
    with running(engine, images, tmp_path_factory.mktemp("compose")) as started:
        yield started


@pytest.fixture(scope="module")
def run_id(stack: Stack) -> str:
    """A run of the demo DAG that was triggered as the form does, and has ended."""
    run = stack.trigger(DAG, {"num_gpus": 2, "max_tokens": 16})
    stack.wait_for_run(DAG, run)
    return run


def test_the_demo_dag_succeeds_with_two_ranks(stack: Stack, run_id: str):
    states = stack.tasks(DAG, run_id)
    for task in (name for name, state in states.items() if state == "failed"):
        print(f"log of {task}:\n{stack.log_of(DAG, run_id, task)}")
    assert set(states.values()) == {"success"}
    ready = next(task for task in states if task.endswith("model_ready"))
    assert "The model is ready" in stack.log_of(DAG, run_id, ready)


def test_every_prompt_has_an_answer_in_the_volume(stack: Stack, run_id: str):
    (name,) = stack.exec("airflow", "sh", "-c", "ls /answers/*.jsonl").split()
    rows = [json.loads(line) for line in stack.exec("airflow", "cat", name).splitlines()]
    lines = (ROOT / "demo" / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    prompts = [json.loads(line) for line in lines]
    assert len(rows) == len(prompts)
    for row, prompt in zip(rows, prompts, strict=True):
        assert row["custom_id"] == prompt.get("custom_id", row["custom_id"])
    assert all(is_answered(row) for row in rows)


def test_nothing_of_the_run_is_left(stack: Stack, run_id: str):
    assert stack.exec("airflow", "sh", "-c", "ls /state | grep -v '^answers$' || true").split() == []


def test_every_health_check_passes(stack: Stack, run_id: str):
    for service in SERVICES:
        wait_for(lambda name=service: stack.health(name) == "healthy", 120, f"a healthy {service}")


def test_no_container_has_a_capability_and_nothing_listens_beyond_loopback(stack: Stack):
    status = stack.exec("airflow", "cat", "/proc/1/status")
    assert "CapEff:\t0000000000000000" in status
    assert "NoNewPrivs:\t1" in status
    published = stack.inspect("airflow")["NetworkSettings"]["Ports"]
    assert [item["HostIp"] for items in published.values() for item in items or ()] == ["127.0.0.1"]
    assert not any(stack.inspect("postgres")["NetworkSettings"]["Ports"].values())


def test_airflow_asks_for_the_password_that_it_made(stack: Stack):
    stranger = Stack.__new__(Stack)
    stranger.__dict__.update(stack.__dict__, _token=None)
    with pytest.raises(urllib.error.HTTPError, match="401"):
        stranger.ask("GET", "/api/v2/dags")
    with pytest.raises(urllib.error.HTTPError, match="401"):
        stranger.ask("POST", "/auth/token", {"username": "admin", "password": "admin"})


def test_logs_and_answers_outlive_the_containers(stack: Stack, run_id: str):
    stack.compose("down", timeout_s=300)
    stack.compose("up", "--detach", "--no-build", timeout_s=600)
    wait_for(stack.is_healthy, 300, "a healthy Airflow")
    stack.log_in()
    ready = next(task for task in stack.tasks(DAG, run_id) if task.endswith("model_ready"))
    assert "The model is ready" in stack.log_of(DAG, run_id, ready)
    assert stack.exec("airflow", "sh", "-c", "ls /answers").split()
