"""The *Test* button where workers are pods: rights and operators, asked of the cluster."""

from __future__ import annotations

import pytest

from airflow_arcadia.hooks.arcadia import ArcadiaHook
from airflow_arcadia.kubernetes.access_review import (
    CUSTOM_RESOURCE_RIGHTS,
    RAY_CLUSTER_RIGHTS,
    WORKER_RIGHTS,
    Right,
)
from airflow_arcadia.kubernetes.kinds import Kind
from tests.deploy.manifests import rights, role
from tests.deploy.test_rights import install_kuberay
from tests.kubernetes.workers import connect
from tests.loopback_cluster.cluster import Cluster, Loopback


def listed(asked: tuple[Right, ...]) -> set[tuple[str, str, str]]:
    """As the Roles' rules are listed."""

    def resource(kind: Kind, part: str) -> str:
        return f"{kind.plural}/{part}" if part else kind.plural

    return {(right.verb, right.kind.group, resource(right.kind, right.subresource)) for right in asked}


def test_what_is_asked_for_is_what_the_shipped_roles_grant():
    config_map = {("get", "", "configmaps")}
    assert listed(WORKER_RIGHTS) == rights(role("airflow-arcadia", "tests")) - config_map
    assert listed(RAY_CLUSTER_RIGHTS) == rights(role("airflow-arcadia-ray", "tests"))
    assert listed(CUSTOM_RESOURCE_RIGHTS) == rights(role("airflow-arcadia-workers", "tests"))


@pytest.mark.cluster
def test_rights_and_operators_are_told(cluster: Cluster, loopback: Loopback, monkeypatch: pytest.MonkeyPatch):
    connect(monkeypatch, cluster)
    loopback.obey([role("airflow-arcadia", "tests")])
    install_kuberay(cluster)
    ok, message = ArcadiaHook().test_connection()
    assert ok, message
    assert f"Airflow may run worker pods in namespace {cluster.namespace}." in message
    assert "KubeRay is installed, but Airflow may not get rayclusters, list rayclusters" in message
    assert "Arcadia's operator is not installed" in message


@pytest.mark.cluster
def test_a_missing_right_is_named(cluster: Cluster, loopback: Loopback, monkeypatch: pytest.MonkeyPatch):
    connect(monkeypatch, cluster)
    loopback.obey([role("airflow-arcadia", "tests")])
    loopback.api.access.denied.add(("delete", "pods"))
    ok, message = ArcadiaHook().test_connection()
    assert not ok
    assert message.startswith("In namespace tests Airflow may not delete pods.")


@pytest.mark.cluster
def test_an_api_server_that_is_away_is_named_soon(
    cluster: Cluster, loopback: Loopback, monkeypatch: pytest.MonkeyPatch
):
    connect(monkeypatch, cluster)
    with loopback.api_away():
        ok, message = ArcadiaHook().test_connection()
    assert not ok
    assert "The Kubernetes API cannot be reached" in message
