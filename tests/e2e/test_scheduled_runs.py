"""The main job through a real scheduler: it succeeds, fails, is marked failed, is killed; nothing is left."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from airflow_arcadia.batch.openai_format import is_answered
from airflow_arcadia.lease import Identity
from airflow_arcadia.lease_store import LeaseStore
from airflow_arcadia.ports import free_port
from airflow_arcadia.processes import find_marked
from airflow_arcadia.ray_dashboard import RayDashboard
from tests import shared_memory
from tests.conftest import ROOT, wait_for
from tests.e2e.scheduled_airflow import ScheduledAirflow, scheduled_airflow
from tests.engine.serving import fastchat
from tests.ray_cluster.real_ray import RealRay, real_ray

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

DAG = "arcadia_batch_inference"
RUN_TIMEOUT_S = 300.0
ROWS = [
    {"custom_id": "chat", "messages": [{"role": "user", "content": "Hi"}]},
    {"prompt": "import json"},
    {
        "custom_id": "whole",
        "method": "POST",
        "url": "/v1/completions",
        "body": {"prompt": "def f(x):", "max_tokens": 3},
    },
    {"custom_id": "chat", "messages": [{"role": "user", "content": "Again, the same id"}]},
    {"custom_id": "bad"},
]


@dataclass
class Stage:
    """What the runs of this module share."""

    airflow: ScheduledAirflow
    head: RealRay
    store: LeaseStore
    folder: Path
    before: set[str]

    def leftovers(self, run_id: str) -> list[str]:
        """All that a run could leave behind: processes, placement groups, shared memory, its lease."""
        lease = Identity(DAG, run_id, "worker").lease_name
        dashboard = RayDashboard(self.head.cluster.dashboard_url)
        facts = asyncio.run(dashboard.facts())
        groups = [group.group_id for group in facts.placement_groups if group.state != "REMOVED"]
        # Ray's count of used GPUs follows its placement groups some seconds later.
        wait_for(lambda: groups or asyncio.run(dashboard.facts()).gpus_free == 2.0, 20, "the GPUs to be free")
        return [
            *(f"process {p.pid} {p.name()}" for p in find_marked(lease)),
            *groups,
            *shared_memory.new_files(self.before, lease),
            *(name for name in self.store.names() if name == lease),
        ]

    def start(self, **params: Any) -> str:
        """Trigger a run by hand, as the form does."""
        return self.airflow.trigger(DAG, params)

    def task(self, run_id: str, task_id: str) -> dict[str, Any]:
        """One task instance of the group."""
        return self.airflow.task(DAG, run_id, f"worker.{task_id}")

    def long_batch(self, name: str) -> tuple[str, dict[str, Any]]:
        """A run whose batch has answered some rows and has many to go; its id and the batch's task."""
        rows = [{"prompt": f"number {i}"} for i in range(20_000)]
        source = self.folder / f"{name}.jsonl"
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
        run_id = self.start(input=str(source), output=str(self.folder / f"{name}-out.jsonl"), max_tokens=64)
        self.airflow.wait_for(lambda: self.rows_done(run_id), RUN_TIMEOUT_S, "the first rows to be answered")
        assert self.airflow.run_state(DAG, run_id) == "running", self.airflow.task_states(DAG, run_id)
        assert find_marked(Identity(DAG, run_id, "worker").lease_name)
        return run_id, self.task(run_id, "answer")

    def rows_done(self, run_id: str) -> bool:
        """Whether the batch's log tells of progress."""
        progressed = " / 20000 rows" in self.airflow.log(DAG, run_id, "worker.answer")
        return progressed or self.airflow.run_state(DAG, run_id) in {"success", "failed"}


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, worker_python: str, tiny_model: str) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("e2e")
    source = folder / "prompts.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    store = LeaseStore(folder / "state")
    with (
        real_ray(folder / "ray", worker_python) as head,
        fastchat("controller", worker_python, folder) as controller,
    ):
        before = shared_memory.files()
        config = f"gateway:\n  controller: {controller}\n{head.yaml}"
        extra = {"arcadia_config_yaml": config, "worker_python": worker_python, "state_dir": str(store.root)}
        env = {
            "AIRFLOW_CONN_ARCADIA_DEFAULT": json.dumps({"conn_type": "arcadia", "extra": extra}),
            "ARCADIA_MODEL": tiny_model,
            "ARCADIA_INPUT": str(source),
            "ARCADIA_OUTPUT": str(folder / "answers-%Y.jsonl"),
            "ARCADIA_NUM_GPUS": "2",
            "ARCADIA_SCHEDULE": "@daily",
            "ARCADIA_EXTRA_ARGS": "--enforce-eager --kv-cache-memory-bytes 268435456 --max-model-len 512",
            "AIRFLOW__OPERATORS__DEFAULT_DEFERRABLE": "True",
            "AIRFLOW__CORE__DEFAULT_TASK_RETRIES": "0",
        }
        with scheduled_airflow(folder / "airflow", ROOT / "dags", free_port(), env) as airflow:
            yield Stage(airflow, head, store, folder, before)


def test_a_scheduled_run_answers_every_row_in_order_and_leaves_nothing(stage: Stage):
    airflow = stage.airflow
    airflow.wait_for(lambda: airflow.dag_exists(DAG), 60, "the DAG to be parsed")
    airflow.request("PATCH", f"/dags/{DAG}", json={"is_paused": False})

    def scheduled() -> list[dict[str, Any]]:
        return list(airflow.request("GET", f"/dags/{DAG}/dagRuns")["dag_runs"])

    run_id = airflow.wait_for(scheduled, 60, "the scheduler to start a run")[0]["dag_run_id"]
    assert airflow.wait_for_run(DAG, run_id, RUN_TIMEOUT_S) == "success", airflow.task_states(DAG, run_id)
    rows = [json.loads(line) for line in (stage.folder / "answers-2026.jsonl").read_text().splitlines()]
    assert [row["custom_id"] for row in rows][::2] == ["chat", "whole", "bad"]
    assert [is_answered(row) for row in rows] == [True, True, True, True, False]
    assert rows[2]["response"]["body"]["usage"]["completion_tokens"] == 3
    assert rows[0]["response"]["body"]["choices"][0]["message"]["content"]
    assert "deferred" in airflow.log(DAG, run_id, "worker.model_ready").lower()
    assert stage.leftovers(run_id) == []


def test_a_worker_that_cannot_start_fails_the_run_with_its_reason(stage: Stage):
    run_id = stage.start(extra_args="--no-such-flag", output=str(stage.folder / "never.jsonl"))
    assert stage.airflow.wait_for_run(DAG, run_id, RUN_TIMEOUT_S) == "failed"
    assert "--no-such-flag" in stage.airflow.log(DAG, run_id, "worker.model_ready")
    assert stage.task(run_id, "teardown_worker")["state"] == "failed"
    assert "nothing is left running" in stage.airflow.log(DAG, run_id, "worker.teardown_worker")
    assert stage.leftovers(run_id) == []


def test_bad_input_fails_the_run_before_anything_is_launched(stage: Stage):
    run_id = stage.start(input=str(stage.folder / "nowhere.jsonl"), output=str(stage.folder / "never.jsonl"))
    assert stage.airflow.wait_for_run(DAG, run_id, RUN_TIMEOUT_S) == "failed"
    states = stage.airflow.task_states(DAG, run_id)
    assert (states["worker.check_input"], states["worker.launch_worker"]) == ("failed", "upstream_failed")
    assert "nowhere.jsonl" in stage.airflow.log(DAG, run_id, "worker.check_input")
    assert stage.leftovers(run_id) == []


def test_a_batch_that_is_marked_failed_is_stopped_and_nothing_is_left(stage: Stage):
    run_id, _ = stage.long_batch("marked")
    stage.airflow.mark(DAG, run_id, "worker.answer", "failed")
    assert stage.airflow.wait_for_run(DAG, run_id, RUN_TIMEOUT_S) == "failed"
    assert stage.leftovers(run_id) == []


def test_a_batch_whose_process_is_killed_fails_the_run_and_nothing_is_left(stage: Stage):
    run_id, task = stage.long_batch("killed")
    os.kill(task["pid"], signal.SIGKILL)
    assert stage.airflow.wait_for_run(DAG, run_id, RUN_TIMEOUT_S) == "failed"
    assert stage.leftovers(run_id) == []
