"""The lease watcher's Role is what ending a lapsed lease needs, and nothing more."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest

from airflow_arcadia.exceptions import RayClusterError
from airflow_arcadia.hooks.kubernetes import kubernetes_api
from airflow_arcadia.kubernetes.leases import KubernetesLeases
from airflow_arcadia.launchers.arcadia_worker.launcher import CustomResourceLauncher
from airflow_arcadia.launchers.lease_watcher import WatchedCluster, Watches, sweep
from airflow_arcadia.operators.ray_cluster import ArcadiaProvisionRayClusterOperator
from tests.airflow_context import make_context
from tests.deploy.manifests import documents, rights
from tests.deploy.test_rights import install_kuberay
from tests.kubernetes import arcadia
from tests.kubernetes.workers import Run, connect, stand_in
from tests.loopback_cluster.api import collector
from tests.loopback_cluster.cluster import Cluster, Loopback


def watcher_role() -> dict[str, Any]:
    (found,) = (item for item in documents("lease-watcher.yaml") if item["kind"] == "Role")
    return {**found, "metadata": {**found["metadata"], "namespace": "tests"}}


def test_ending_every_kind_of_worker_uses_every_right_and_no_other(
    cluster: Cluster, loopback: Loopback, monkeypatch: pytest.MonkeyPatch
):
    connect(monkeypatch, cluster, password="the-api-key", ray_token="the-ray-token")
    arcadia.start_arcadia(cluster)
    reached = arcadia.made_before(cluster, "theirs")
    install_kuberay(cluster)
    pod, worker = Run(cluster, "manual__pod", stand_in(cluster)), Run(cluster, "manual__worker")
    theirs = Run(cluster, "manual__theirs")
    runs = (pod, worker, theirs)
    for run in runs:
        run.reserve()
    provision = ArcadiaProvisionRayClusterOperator(
        task_id="provision",
        lease=pod.lease,
        num_gpus=2,
        ray_cluster="auto",
        create="if_missing",
        ray_cluster_spec={"image": "registry.test/worker", "startup_timeout": 0.5},
    )
    with pytest.raises(RayClusterError):
        provision.execute(make_context(pod.run_id))
    pod.launch()
    worker.launch(launcher="custom_resource", custom_resource=arcadia.made_here())
    existing = {"name": "theirs", "existing": True, **reached}
    theirs.launch(launcher="custom_resource", custom_resource=existing)
    api = kubernetes_api(cluster.airflow_connection["extra"], cluster.namespace, patience_s=5)
    KubernetesLeases(api).update(pod.lease, lambda held: replace(held, duration_s=7200.0))
    loopback.obey([watcher_role()])

    launchers = {CustomResourceLauncher.name: CustomResourceLauncher(api, KubernetesLeases(api))}
    watches, now = Watches(longest_gap_s=7200.0), time.time()
    kept = sweep(WatchedCluster(api, launchers), watches, lambda: now, grace_s=0).kept
    assert sorted(kept) == sorted(run.lease for run in runs)
    # Arcadia's own pods are the collector's to delete.
    first = sweep(WatchedCluster(api, launchers), watches, lambda: now + 3601, grace_s=0)
    # One slower than the watcher: what is not deleted by name stays.
    monkeypatch.setattr(collector, "collect", lambda store: None)
    second = sweep(WatchedCluster(api, launchers), watches, lambda: now + 7201, grace_s=0)

    assert first.errors == second.errors == {}
    ended = {item.name: item.left for item in [*first.reaped, *second.reaped]}
    assert ended == {run.lease: () for run in runs}
    assert loopback.api.access.used == rights(watcher_role())


def test_the_deployment_runs_as_the_account_that_the_role_is_bound_to():
    items = {item["kind"]: item for item in documents("lease-watcher.yaml")}
    account = items["ServiceAccount"]["metadata"]["name"]
    assert items["Deployment"]["spec"]["template"]["spec"]["serviceAccountName"] == account
    assert items["RoleBinding"]["subjects"][0]["name"] == account
    assert items["RoleBinding"]["roleRef"]["name"] == items["Role"]["metadata"]["name"]
