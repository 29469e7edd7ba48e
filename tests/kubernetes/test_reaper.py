"""The leases of a namespace as a reaper sees and ends them."""

from __future__ import annotations

import time

import pytest

from airflow_arcadia.hooks.kubernetes import kubernetes_api
from airflow_arcadia.kubernetes.api import KubernetesApi
from airflow_arcadia.kubernetes.kinds import LEASE, POD, SECRET, labels_of_lease, owner_reference
from airflow_arcadia.kubernetes.leases import OWNED, KubernetesLeases
from airflow_arcadia.launchers.reap_backends import ClusterBackend
from airflow_arcadia.launchers.reaper import reap
from airflow_arcadia.lease import Identity, Lease
from tests.loopback_cluster.cluster import Cluster

LATER = 10_000.0


@pytest.fixture
def api(cluster: Cluster) -> KubernetesApi:
    return kubernetes_api(cluster.airflow_connection["extra"], cluster.namespace, patience_s=5)


def running(_: Identity) -> str:
    return "running"


def pod(lease: str, owner: Lease | None) -> dict:
    metadata = {"name": f"{lease}-worker", "labels": labels_of_lease(lease)}
    if owner is not None:
        metadata["ownerReferences"] = [owner_reference(owner.name, owner.uid)]
    container = {
        "name": "worker",
        "image": "python",
        "command": ["sleep", "600"],
        "resources": {"limits": {"nvidia.com/gpu": "2"}},
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"containers": [container]}}


def secret(name: str, labels: dict[str, str]) -> dict:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "labels": labels},
        "type": "Opaque",
    }


def pods(api: KubernetesApi) -> list[str]:
    return [item["metadata"]["name"] for item in api.run(lambda session: session.find(POD))]


def test_a_lapsed_lease_goes_with_its_pod_and_nothing_else_does(api: KubernetesApi):
    leases = KubernetesLeases(api)
    alive = leases.reserve(Identity("dag", "alive", "worker"), time.time())
    lapsed = leases.reserve(Identity("dag", "lapsed", "worker"), time.time() - LATER)
    for lease in (alive, lapsed):
        body = pod(lease.name, lease)
        api.run(lambda session, body=body: session.create(POD, body))
    api.run(lambda session: session.create(SECRET, secret("theirs", {"app": "theirs"})))
    strangers = {"apiVersion": LEASE.api_version, "kind": "Lease", "metadata": {"name": "theirs"}, "spec": {}}
    api.run(lambda session: session.create(LEASE, strangers))

    report = reap(ClusterBackend(api, {}), running, time.time(), grace_s=0)

    assert report.kept == [alive.name]
    assert [(item.name, item.gpus, item.left) for item in report.reaped] == [(lapsed.name, 2, ())]
    assert pods(api) == [f"{alive.name}-worker"]
    assert leases.read(lapsed.name) is None
    assert api.run(lambda session: session.get(SECRET, "theirs"))
    assert api.run(lambda session: session.get(LEASE, "theirs"))


def test_a_lease_that_cannot_be_read_is_ended_by_its_label_once_it_was_not_renewed_for_long(
    api: KubernetesApi,
):
    leases = KubernetesLeases(api)
    made = leases.reserve(Identity("dag", "torn", "worker"), time.time())
    api.run(lambda session: session.create(POD, pod(made.name, made)))
    torn = {"metadata": {"annotations": {OWNED: "{"}}}
    api.run(lambda session: session.patch(LEASE, made.name, torn))
    backend = ClusterBackend(api, {})
    assert reap(backend, running, time.time()).kept == [made.name]
    assert [item.name for item in reap(backend, running, time.time() + LATER, grace_s=0).reaped] == [
        made.name
    ]
    assert pods(api) == []


def test_what_carries_the_label_of_a_lease_that_is_gone_is_ended(api: KubernetesApi):
    api.run(lambda session: session.create(POD, pod("worker-0123456789", None)))
    backend = ClusterBackend(api, {})
    assert reap(backend, running, time.time()).kept == ["worker-0123456789"]
    report = reap(backend, running, time.time() + LATER, grace_s=0)
    assert [item.why for item in report.reaped] == ["its lease is gone"]
    assert pods(api) == []
