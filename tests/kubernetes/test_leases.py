"""Leases as objects of the cluster: reserved once, changed alone, renewed by many, read by anybody."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from airflow_arcadia.exceptions import LeaseError
from airflow_arcadia.hooks.kubernetes import kubernetes_api
from airflow_arcadia.kubernetes.leases import KubernetesLeases, lease_object, parse_lease
from airflow_arcadia.launchers.renewal import LeaseKeeper
from airflow_arcadia.lease import Identity, Lease, Owned
from tests.loopback_cluster.cluster import Cluster

WHO = Identity("a dag", "manual__2026-11-23T00:00:00+00:00", "answer")


@pytest.fixture
def leases(cluster: Cluster) -> KubernetesLeases:
    extras = cluster.airflow_connection["extra"]
    return KubernetesLeases(kubernetes_api(extras, cluster.namespace, patience_s=5))


@pytest.fixture
def lease(leases: KubernetesLeases, cluster: Cluster):
    made = leases.reserve(WHO, 1_700_000_000.25)
    yield made
    cluster.coordination.delete_namespaced_lease(made.name, cluster.namespace)


def test_a_lease_keeps_everything_and_is_a_lease_to_kubectl_too(
    leases: KubernetesLeases, lease: Lease, cluster: Cluster
):
    assert leases.read(lease.name) == lease
    assert (lease.identity, lease.created_at, lease.uid != "") == (WHO, 1_700_000_000.25, True)
    found = cluster.coordination.read_namespaced_lease(lease.name, cluster.namespace)
    assert found.spec.lease_duration_seconds == 3600
    assert found.spec.holder_identity == "a dag/manual__2026-11-23T00:00:00+00:00/answer/-1"


def test_reserving_again_renews_and_takes_back_one_that_was_released(leases: KubernetesLeases, lease: Lease):
    again = leases.reserve(WHO, 1_700_000_100.0)
    assert (again.uid, again.renewed_at, again.created_at) == (lease.uid, 1_700_000_100.0, lease.created_at)
    owned = Owned("worker", "w", "pod", {"pod": "w-worker"})
    leases.update(lease.name, lambda held: held.record(owned).release())
    back = leases.reserve(WHO, 1_700_000_200.0)
    assert (back.released, back.owned) == (False, (owned,))


def test_changes_that_meet_are_all_kept(leases: KubernetesLeases, lease: Lease):
    def record(number: int) -> None:
        leases.update(lease.name, lambda held: held.record(Owned("worker", f"w{number}", "pod")))

    writers = [threading.Thread(target=record, args=(number,)) for number in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    held = leases.read(lease.name)
    assert held is not None
    assert {item.name for item in held.owned} == {"w0", "w1", "w2", "w3"}


def test_a_lease_that_is_not_there_is_told_from_one_that_cannot_be_read(leases: KubernetesLeases):
    assert leases.read("never-reserved") is None
    with pytest.raises(LeaseError, match="never-reserved does not exist"):
        leases.update("never-reserved", lambda held: held)
    with pytest.raises(LeaseError):
        asyncio.run(leases.renew("never-reserved", 0.0))


def test_the_object_and_the_lease_are_the_same_thing():
    lease = Lease("l", WHO, 1.5, 2.5, 60.0, (Owned("worker", "w", "pod", {"a": 1}),), released=True)
    assert parse_lease(lease_object(lease)) == lease


async def test_a_lease_is_renewed_while_an_event_loop_runs(cluster: Cluster):
    """As in a batch, whose progress reports are made on its event loop."""
    extras = cluster.airflow_connection["extra"]

    def leases() -> KubernetesLeases:
        return KubernetesLeases(kubernetes_api(extras, cluster.namespace, patience_s=5))

    def renewed_at() -> float:
        held = leases().read(made.name)
        assert held is not None
        return held.renewed_at

    made = await asyncio.to_thread(leases().reserve, WHO, 1_700_000_000.0)
    with LeaseKeeper(leases(), [made.name]) as renewal:
        deadline = time.monotonic() + 20
        while await asyncio.to_thread(renewed_at) == made.renewed_at and time.monotonic() < deadline:
            assert renewal.error is None
    assert await asyncio.to_thread(renewed_at) > made.renewed_at
