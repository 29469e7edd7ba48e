"""With Airflow away, a lapsed lease takes its pod, its Worker and its Ray cluster along; a held one none."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from airflow_arcadia.exceptions import RayClusterError
from airflow_arcadia.hooks.kubernetes import kubernetes_api
from airflow_arcadia.kubernetes.leases import KubernetesLeases
from airflow_arcadia.operators.ray_cluster import ArcadiaProvisionRayClusterOperator
from tests.airflow_context import make_context
from tests.conftest import ROOT, wait_for
from tests.kubernetes import arcadia
from tests.kubernetes.rays import ray_clusters, start_kuberay
from tests.kubernetes.workers import STAND_IN, Run, connect, stand_in, where
from tests.loopback_cluster.cluster import Cluster, Loopback

LEASE_S = 4.0
SHORTEST_S = 15.0
"""The shortest lease that Airflow's side may ask for: progress within 5 s of a renewal renews nothing."""


@pytest.fixture
def leases(
    cluster: Cluster, loopback: Loopback, monkeypatch: pytest.MonkeyPatch
) -> Iterator[KubernetesLeases]:
    """The leases, with the watcher running as the process it is in its Deployment."""
    connect(monkeypatch, cluster)
    env = {**os.environ, "KUBECONFIG": str(cluster.kubeconfig), "PYTHONPATH": str(ROOT)}
    argv = [sys.executable, "-m", "airflow_arcadia.launchers.lease_watcher"]
    argv += ["--namespace", cluster.namespace, "--interval", "0.3", "--grace", "0"]
    watcher = subprocess.Popen(argv, env=env)
    yield KubernetesLeases(kubernetes_api(cluster.airflow_connection["extra"], cluster.namespace))
    watcher.terminate()
    watcher.wait()


def let_lapse(leases: KubernetesLeases, run: Run, after_s: float = LEASE_S) -> None:
    """The last renewal of an Airflow that is killed now."""
    leases.update(run.lease, lambda held: replace(held, duration_s=after_s).renew(time.time()))


def test_a_pod_ends_with_its_lease_and_one_whose_lease_is_held_stays(
    leases: KubernetesLeases, cluster: Cluster
):
    kept = Run(cluster, "manual__kept", stand_in(cluster))
    lapsing = Run(cluster, "manual__lapsing", stand_in(cluster))
    for run in (kept, lapsing):
        run.reserve()
        run.launch()
    let_lapse(leases, lapsing)
    wait_for(lambda: lapsing.objects == [], 60, "everything of the lease to be gone")
    assert any(text.startswith("Pod") for text in map(str, kept.objects)), kept.objects
    kept.teardown(grace=0)


def test_a_pod_whose_own_batch_gets_further_keeps_its_lease_until_it_does_not(
    leases: KubernetesLeases, cluster: Cluster, tmp_path: Path
):
    gets_further = tmp_path / "gets-further"
    gets_further.touch()
    age = f"0.0 if os.path.exists({str(gets_further)!r}) else 60.0"
    answer = "ANSWERS.get(self.path, {})"
    program = STAND_IN.replace(answer, f"{{**{answer}, 'seconds_since_batch_progress': {age}}}")
    container = {"name": "worker", "command": ["python3", "-c", program]}
    run = Run(cluster, "manual__batch", where() | {"full_pod_spec": {"spec": {"containers": [container]}}})
    run.reserve()
    run.launch()
    assert run.wait() is None
    let_lapse(leases, run, SHORTEST_S)
    first = leases.read(run.lease)

    def outlives_it() -> bool:
        held = leases.read(run.lease)
        assert held is not None
        assert first is not None
        return held.renewed_at > first.renewed_at + SHORTEST_S

    wait_for(outlives_it, 60, "the lease to be renewed after it would have lapsed")
    assert any(text.startswith("Pod") for text in map(str, run.objects)), run.objects
    gets_further.unlink()
    wait_for(lambda: run.objects == [], 60, "everything of the lease to be gone")


def test_a_worker_of_arcadias_operator_ends_with_its_lease(
    leases: KubernetesLeases, cluster: Cluster, loopback: Loopback
):
    arcadia.start_arcadia(cluster)
    run = Run(cluster, "manual__worker")
    run.reserve()
    handle = run.launch(launcher="custom_resource", custom_resource=arcadia.made_here())
    name = handle["where"]["worker"]
    wait_for(lambda: arcadia.pods(cluster, name), 30, "its pod")
    let_lapse(leases, run)
    wait_for(lambda: not arcadia.pods(cluster, name) and arcadia.worker(cluster, name) is None, 90, "its end")
    wait_for(lambda: leases.read(run.lease) is None, 30, "its lease to be gone")


def test_a_workers_existing_resource_is_taken_offline_and_stays(
    leases: KubernetesLeases, cluster: Cluster, loopback: Loopback
):
    arcadia.start_arcadia(cluster)
    reached = arcadia.made_before(cluster, "theirs")
    run = Run(cluster, "manual__existing")
    run.reserve()
    settings = {"name": "theirs", "existing": True, **reached}
    run.launch(launcher="custom_resource", custom_resource=settings)
    wait_for(lambda: arcadia.pods(cluster, "theirs"), 30, "its pod")
    let_lapse(leases, run)
    wait_for(lambda: not arcadia.pods(cluster, "theirs"), 90, "it to be offline")
    found = arcadia.worker(cluster, "theirs")
    assert found is not None
    assert found["spec"]["replicas"] == 0


def test_a_ray_cluster_that_was_made_for_the_run_ends_with_its_lease(
    leases: KubernetesLeases, cluster: Cluster
):
    start_kuberay(cluster)
    run = Run(cluster, "manual__ray")
    run.reserve()
    provision = ArcadiaProvisionRayClusterOperator(
        task_id="provision",
        lease=run.lease,
        num_gpus=2,
        ray_cluster="auto",
        create="if_missing",
        ray_cluster_spec={"image": cluster.python_image, "startup_timeout": 0.5},
    )
    with pytest.raises(RayClusterError):  # its image has no Ray: what counts is that it is there
        provision.execute(make_context(run.run_id))
    assert ray_clusters(cluster)
    let_lapse(leases, run)
    wait_for(lambda: not ray_clusters(cluster) and run.objects == [], 90, "everything to be gone")
