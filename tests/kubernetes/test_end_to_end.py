"""The main job with the worker as a pod: a real scheduler, Ray, vLLM on two ranks, FastChat, Kubernetes."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from airflow_arcadia.lease import Identity
from airflow_arcadia.ports import free_port
from airflow_arcadia.ray_cluster.dashboard import RayDashboard
from tests.conftest import ROOT, wait_for
from tests.e2e.scheduled_airflow import ScheduledAirflow, scheduled_airflow
from tests.engine.serving import fastchat
from tests.kubernetes.cluster import Cluster
from tests.kubernetes.workers import Run, where
from tests.ray_cluster.real_ray import RealRay, real_ray

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

DAG = "arcadia_batch_inference"
RUN_TIMEOUT_S = 240.0
ROWS = [{"prompt": f"def function_{number}(value):"} for number in range(40)]


@dataclass
class Stage:
    """What a run needs.

    :param head: a Ray cluster that exists already, as arcadia-config lists it.
    """

    airflow: ScheduledAirflow
    cluster: Cluster
    head: RealRay
    folder: Path

    def run(self) -> tuple[str, Run]:
        """Wait for the run that the scheduler starts, and its end; its id, and its objects in the cluster."""
        self.airflow.wait_for(lambda: self.airflow.dag_exists(DAG), 60, "the DAG to be parsed")
        self.airflow.request("PATCH", f"/dags/{DAG}", json={"is_paused": False})

        def started() -> list[dict[str, Any]]:
            return list(self.airflow.request("GET", f"/dags/{DAG}/dagRuns")["dag_runs"])

        run_id = self.airflow.wait_for(started, 60, "the scheduler to start a run")[0]["dag_run_id"]
        run = Run(self.cluster, run_id)
        run.lease = Identity(DAG, run_id, "worker").lease_name
        state = self.airflow.wait_for_run(DAG, run_id, RUN_TIMEOUT_S)
        assert state == "success", self.airflow.task_states(DAG, run_id)
        return run_id, run

    def log(self, run_id: str, task: str) -> str:
        """What a task of the group logged."""
        return self.airflow.log(DAG, run_id, f"worker.{task}")


@pytest.fixture
def stage(cluster: Cluster, tmp_path: Path, worker_python: str, tiny_model: str) -> Iterator[Stage]:
    source = tmp_path / "prompts.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    model = Path(tiny_model)
    volume = os.environ.get("ARCADIA_TEST_MODEL_VOLUME")
    pod = {
        **where(cluster),
        "image": cluster.worker_image,
        "model_volume": json.loads(volume) if volume else {"hostPath": {"path": str(model.parent)}},
        "shm_size": "1Gi",
    }
    with (
        real_ray(tmp_path / "ray", worker_python) as head,
        fastchat("controller", worker_python, tmp_path) as controller,
    ):
        extra = {
            "arcadia_config_yaml": f"gateway:\n  controller: {controller}\n{head.yaml}",
            "kubernetes_conn_id": "kubernetes_default",
            "namespace": cluster.namespace,
        }
        connection = {"conn_type": "arcadia", "password": "the-api-key", "extra": extra}
        env = {
            "AIRFLOW_CONN_ARCADIA_DEFAULT": json.dumps(connection),
            "AIRFLOW_CONN_KUBERNETES_DEFAULT": json.dumps(cluster.airflow_connection),
            "ARCADIA_POD": json.dumps(pod),
            "ARCADIA_MODEL": f"/data/models/{model.name}",
            "ARCADIA_INPUT": str(source),
            "ARCADIA_OUTPUT": str(tmp_path / "answers.jsonl"),
            "ARCADIA_NUM_GPUS": "2",
            "ARCADIA_EXTRA_ARGS": "--enforce-eager --kv-cache-memory-bytes 268435456 --max-model-len 512",
            "AIRFLOW__OPERATORS__DEFAULT_DEFERRABLE": "True",
            "AIRFLOW__CORE__DEFAULT_TASK_RETRIES": "0",
        }
        with scheduled_airflow(tmp_path / "airflow", ROOT / "dags", free_port(), env) as airflow:
            yield Stage(airflow, cluster, head, tmp_path)


def test_a_run_answers_its_rows_with_a_pod_on_two_ranks_and_leaves_nothing(stage: Stage):
    before = set(os.listdir("/dev/shm"))
    run_id, run = stage.run()
    rows = [json.loads(line) for line in (stage.folder / "answers.jsonl").read_text().splitlines()]
    assert len(rows) == len(ROWS)
    assert not [row for row in rows if row["error"]]
    waited = stage.log(run_id, "model_ready")
    assert "tensor_parallel_size=2" in waited, "the worker's own log is told while one waits"
    assert "the-api-key" not in "".join(
        stage.log(run_id, t) for t in ("launch_worker", "model_ready", "answer")
    )
    assert run.objects == []
    facts = asyncio.run(RayDashboard(stage.head.cluster.dashboard_url).facts())
    assert [group for group in facts.placement_groups if group.state != "REMOVED"] == []
    wait_for(lambda: set(os.listdir("/dev/shm")) <= before, 20, "the shared memory to be gone")
