"""The main job with the worker as a pod: a real scheduler, Ray, vLLM on two ranks, FastChat, Kubernetes.

On a cluster of ``ARCADIA_TEST_KUBECONFIG`` this machine must reach the pods (``ARCADIA_TEST_WORKER_URL``);
no pod need reach this machine: the Ray cluster is made by KubeRay, and FastChat's controller is the one of
``ARCADIA_TEST_CONTROLLER``, or there is none. ``ARCADIA_TEST_MODEL_VOLUME`` is a volume source as JSON, with
the folder ``tiny-llama`` in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from airflow_arcadia.batch.openai_format import is_answered
from airflow_arcadia.lease import Identity
from airflow_arcadia.ports import free_port
from airflow_arcadia.ray_dashboard import RayDashboard
from tests import shared_memory
from tests.conftest import ROOT, wait_for
from tests.e2e.scheduled_airflow import ScheduledAirflow, scheduled_airflow
from tests.engine.serving import fastchat
from tests.kubernetes.rays import made_here, start_kuberay
from tests.kubernetes.workers import Run, pods_share_an_address, where
from tests.loopback_cluster.cluster import Cluster
from tests.ray_cluster.real_ray import RealRay, real_ray

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

DAG = "arcadia_batch_inference"
RUN_TIMEOUT_S = 300.0
ROWS = [{"prompt": f"def function_{number}(value):"} for number in range(40)]
SECRETS = {"password": "the-api-key", "ray_token": "the-ray-token"}


@dataclass
class Rays:
    """Where the run finds its Ray cluster.

    :param existing: one that arcadia-config lists; None where KubeRay makes one for the run.
    :param config: ``rayClusters`` of arcadia-config.
    :param spec: ``ray_cluster_spec``.
    :param password: the connection's; without one the worker gets a random API key.
    """

    existing: RealRay | None
    config: str
    spec: dict[str, Any]
    password: str | None = None


@contextlib.contextmanager
def existing(cluster: Cluster, folder: Path, worker_python: str, model: dict[str, Any]) -> Iterator[Rays]:
    """In arcadia-config."""
    if not pods_share_an_address():
        pytest.skip("the cluster's pods cannot reach a Ray head of this machine")
    (folder / "token").write_text(SECRETS["ray_token"])
    with real_ray(folder / "ray", worker_python, token_file=str(folder / "token")) as head:
        yield Rays(head, head.yaml, {}, SECRETS["password"])


@contextlib.contextmanager
def kuberay(cluster: Cluster, folder: Path, worker_python: str, model: dict[str, Any]) -> Iterator[Rays]:
    """Made for the run."""
    start_kuberay(cluster)
    with made_here(cluster, model_volume=model) as spec:
        yield Rays(None, "rayClusters: []\n", spec)


@contextlib.contextmanager
def controller(folder: Path, worker_python: str) -> Iterator[str]:
    """URL of FastChat's controller that the worker registers with; empty where it reaches none."""
    if pods_share_an_address():
        with fastchat("controller", worker_python, folder) as url:
            yield url
    else:
        yield os.environ.get("ARCADIA_TEST_CONTROLLER", "")


@dataclass
class Stage:
    """What a run needs."""

    airflow: ScheduledAirflow
    cluster: Cluster
    rays: Rays
    folder: Path
    before: set[str]

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


@pytest.fixture(params=[existing, kuberay], ids=lambda rays: rays.__name__)
def stage(
    request: pytest.FixtureRequest, cluster: Cluster, tmp_path: Path, worker_python: str, tiny_model: str
) -> Iterator[Stage]:
    source = tmp_path / "prompts.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    model = Path(tiny_model)
    named = os.environ.get("ARCADIA_TEST_MODEL_VOLUME")
    volume = json.loads(named) if named else {"hostPath": {"path": str(model.parent)}}
    pod = {**where(), "image": cluster.worker_image, "model_volume": volume, "shm_size": "1Gi"}
    before = shared_memory.files()
    with (
        request.param(cluster, tmp_path, worker_python, volume) as rays,
        controller(tmp_path, worker_python) as registered,
    ):
        if rays.existing:
            before = shared_memory.files()
        extra = {
            "arcadia_config_yaml": (
                f"gateway:\n  controller: {registered}\n{rays.config}" if registered else rays.config
            ),
            "kubernetes_conn_id": "kubernetes_default",
            "namespace": cluster.namespace,
            "ray_token": SECRETS["ray_token"],
        }
        connection = {"conn_type": "arcadia", "password": rays.password, "extra": extra}
        env = {
            "AIRFLOW_CONN_ARCADIA_DEFAULT": json.dumps(connection),
            "AIRFLOW_CONN_KUBERNETES_DEFAULT": json.dumps(cluster.airflow_connection),
            "ARCADIA_POD": json.dumps(pod),
            "ARCADIA_RAY_CLUSTER": json.dumps(rays.spec),
            "ARCADIA_MODEL": f"/data/models/{model.name}",
            "ARCADIA_INPUT": str(source),
            "ARCADIA_OUTPUT": str(tmp_path / "answers.jsonl"),
            "ARCADIA_NUM_GPUS": "2",
            "ARCADIA_SCHEDULE": "@daily",
            "ARCADIA_EXTRA_ARGS": "--enforce-eager --kv-cache-memory-bytes 268435456 --max-model-len 512",
            "AIRFLOW__OPERATORS__DEFAULT_DEFERRABLE": "True",
            "AIRFLOW__CORE__DEFAULT_TASK_RETRIES": "0",
        }
        with scheduled_airflow(tmp_path / "airflow", ROOT / "dags", free_port(), env) as airflow:
            yield Stage(airflow, cluster, rays, tmp_path, before)


def processes_of(lease: str) -> list[str]:
    """Processes of this machine whose environment tells of the lease: a pod's, and Ray's actors."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if lease in process.environ().values():
                found.append(f"{process.pid} {process.name()}")
    return found


def test_a_run_answers_its_rows_with_a_pod_on_two_ranks_and_leaves_nothing(stage: Stage):
    run_id, run = stage.run()
    rows = [json.loads(line) for line in (stage.folder / "answers.jsonl").read_text().splitlines()]
    assert len(rows) == len(ROWS)
    assert all(map(is_answered, rows))
    waited = stage.log(run_id, "model_ready")
    assert "tensor_parallel_size=2" in waited, "the worker's own log is told while one waits"
    tasks = ("provision_ray_cluster", "launch_worker", "model_ready", "answer", "teardown_worker")
    told = "".join(stage.log(run_id, task) for task in tasks)
    assert not [secret for secret in SECRETS.values() if secret in told]
    assert run.objects == []
    if pods_share_an_address():
        wait_for(lambda: processes_of(run.lease) == [], 20, "the run's processes to be gone")
    if stage.rays.existing:
        token = stage.rays.existing.token_file
        facts = asyncio.run(RayDashboard(stage.rays.existing.cluster.dashboard_url, token).facts())
        assert [group for group in facts.placement_groups if group.state != "REMOVED"] == []
    else:
        assert f"Ray cluster {run.lease} at" in stage.log(run_id, "provision_ray_cluster")
        services = stage.cluster.core.list_namespaced_service
        wait_for(lambda: not services(stage.cluster.namespace).items, 60, "KubeRay's Service to be collected")
    left = functools.partial(shared_memory.new_files, stage.before, run.lease)
    wait_for(lambda: left() == [], 20, "the shared memory to be gone")
