"""The shipped Roles are what the code needs, all of it and nothing more: measured on the loopback cluster."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException
from kubernetes import client, config  # noqa: TID253 - what an administrator installs

from airflow_arcadia.exceptions import ArcadiaError, RayClusterError
from airflow_arcadia.operators.ray_cluster import ArcadiaProvisionRayClusterOperator
from tests.airflow_context import make_context
from tests.deploy.manifests import documents, rights, role
from tests.kubernetes import arcadia
from tests.kubernetes.workers import STAND_IN, Run, connect, stand_in
from tests.loopback_cluster.api import collector
from tests.loopback_cluster.cluster import Cluster, Loopback

BASE = role("airflow-arcadia", "tests")
RAY = role("airflow-arcadia-ray", "tests")
WORKERS = role("airflow-arcadia-workers", "tests")
SLOW = f"import os, time; time.sleep(float(os.environ.get('LOADING_S', '1.5')))\n{STAND_IN}"
"""A worker that takes a moment to load: what is asked while one waits must be asked."""
LOGS = ("get", "", "pods/log")
"""The one right that is missed without a failure: no log is no reason to end a wait."""


@pytest.fixture
def ready(cluster: Cluster, loopback: Loopback, monkeypatch: pytest.MonkeyPatch) -> Loopback:
    """A cluster with the shipped ConfigMap, and Airflow held to the shipped Roles."""
    (config,) = documents("arcadia-config.yaml")
    config["metadata"]["namespace"] = cluster.namespace
    cluster.core.create_namespaced_config_map(cluster.namespace, config)
    connect(
        monkeypatch,
        cluster,
        password="the-api-key",
        ray_token="the-ray-token",
        arcadia_config_yaml="",
        arcadia_config_map="arcadia-config",
    )
    # A collector slower than any teardown: what is not deleted by name stays.
    monkeypatch.setattr(collector, "collect", lambda store: None)
    loopback.obey([BASE, RAY])
    return loopback


def worker(cluster: Cluster, run_id: str, loading_s: float = 1.5) -> Run:
    """A run whose worker takes a moment to load."""
    pod = stand_in(cluster)
    pod["full_pod_spec"]["spec"]["containers"][0]["command"][-1] = SLOW
    pod["full_pod_spec"]["spec"]["containers"][0]["env"] = [{"name": "LOADING_S", "value": str(loading_s)}]
    return Run(cluster, run_id, pod)


def live(run: Run) -> str | None:
    """Reserved, launched, launched again, ready, torn down; returns why the wait failed, if it did."""
    run.reserve()
    for _ in range(2):
        # Without the controller that the ConfigMap names: there is none in the test.
        run.launch(additional_envs={"FASTCHAT_CONTROLLER_ADDRESS": ""})
        run.handle["controller_address"] = None
    failed = run.wait()
    run.teardown()
    return failed


def a_ray_clusters_life(cluster: Cluster, run_id: str) -> None:
    """Asked for twice, never up since no KubeRay is there, and torn down."""
    run = Run(cluster, run_id)
    run.reserve()
    provision = ArcadiaProvisionRayClusterOperator(
        task_id="provision",
        lease=run.lease,
        num_gpus=2,
        ray_cluster="auto",
        create="if_missing",
        ray_cluster_spec={"image": "registry.test/worker", "startup_timeout": 0.5},
    )
    for _ in range(2):
        with pytest.raises(RayClusterError, match="was not ready within"):
            provision.execute(make_context(run_id))
    run.teardown()


def install_kuberay(cluster: Cluster) -> None:
    """Its kind alone: with any content, and nobody who acts on it."""
    name = {"plural": "rayclusters", "singular": "raycluster", "kind": "RayCluster"}
    version = {
        "name": "v1",
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
    }
    admin = config.new_client_from_config(str(cluster.kubeconfig), context="admin")
    client.ApiextensionsV1Api(admin).create_custom_resource_definition(
        {
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": "rayclusters.ray.io"},
            "spec": {"group": "ray.io", "scope": "Namespaced", "names": name, "versions": [version]},
        }
    )


def test_a_workers_life_uses_every_right_of_the_role_and_no_other(ready: Loopback, cluster: Cluster):
    run = worker(cluster, "manual__rights")
    assert live(run) is None
    assert run.objects == []
    used = {right for right in ready.api.access.used if right[2] not in {"rayclusters", "workers"}}
    assert used == rights(BASE)


def test_a_ray_clusters_life_uses_every_right_of_its_role(ready: Loopback, cluster: Cluster):
    install_kuberay(cluster)
    a_ray_clusters_life(cluster, "manual__ray")
    used = ready.api.access.used
    assert {right for right in used if right[2] == "rayclusters"} == rights(RAY)
    assert used <= rights(BASE, RAY)


@pytest.fixture
def with_arcadia(
    cluster: Cluster, loopback: Loopback, monkeypatch: pytest.MonkeyPatch
) -> tuple[Loopback, dict[str, str]]:
    """A cluster where Arcadia acts, and where a Worker of its is reached; Airflow is held to the Roles."""
    connect(monkeypatch, cluster)
    arcadia.start_arcadia(cluster, runner=SLOW)
    reached = arcadia.made_before(cluster, "qwen")
    loopback.obey([BASE, WORKERS])
    return loopback, reached


def an_arcadia_workers_life(cluster: Cluster, reached: dict[str, str], loading_s: float = 1.5) -> str | None:
    """One made and deleted, one taken online and offline; returns why a wait failed, if one did."""
    made = arcadia.made_here()
    made["additional_envs"].append({"name": "LOADING_S", "value": str(loading_s)})
    for number, settings in enumerate((made, {"name": "qwen", "existing": True, **reached})):
        run = Run(cluster, f"manual__{number}")
        run.reserve()
        for _ in range(2):
            run.launch(launcher="custom_resource", custom_resource=settings)
        if failed := run.wait():
            return failed
        run.teardown(grace=1)
    return None


def test_an_arcadia_workers_life_uses_every_right_of_its_role(
    with_arcadia: tuple[Loopback, dict[str, str]], cluster: Cluster
):
    loopback, reached = with_arcadia
    assert an_arcadia_workers_life(cluster, reached) is None
    used = loopback.api.access.used
    assert {right for right in used if right[2] == "workers"} == rights(WORKERS)
    assert {right for right in used if right[2] != "rayclusters"} <= rights(BASE, WORKERS)


@pytest.mark.parametrize("verb", sorted(right[0] for right in rights(WORKERS)))
def test_a_right_on_workers_taken_away_is_named(
    with_arcadia: tuple[Loopback, dict[str, str]], cluster: Cluster, verb: str
):
    loopback, reached = with_arcadia
    loopback.api.access.denied.add((verb, "workers"))
    # A watch is only missed while one waits.
    loading_s = 10 if verb == "watch" else 1.5
    said = said_by(lambda: an_arcadia_workers_life(cluster, reached, loading_s))
    assert f"may not {verb} workers" in said


@pytest.mark.parametrize("verb", sorted(right[0] for right in rights(RAY)))
def test_a_right_on_ray_clusters_taken_away_is_named(ready: Loopback, cluster: Cluster, verb: str):
    install_kuberay(cluster)
    ready.api.access.denied.add((verb, "rayclusters"))
    assert f"may not {verb} rayclusters" in said_by(lambda: a_ray_clusters_life(cluster, "manual__ray"))


def said_by(life: Callable[[], str | None]) -> str:
    """Why that failed."""
    try:
        return life() or ""
    except (ArcadiaError, AirflowFailException) as error:
        return str(error)


@pytest.mark.parametrize("right", sorted(rights(BASE) - {LOGS}), ids=lambda right: f"{right[0]} {right[2]}")
def test_a_right_taken_away_is_named_by_whatever_fails_without_it(
    ready: Loopback, cluster: Cluster, right: tuple[str, str, str]
):
    verb, _, resource = right
    ready.api.access.denied.add((verb, resource))
    # A watch is only missed while one waits.
    run = worker(cluster, "manual__denied", loading_s=10 if verb == "watch" else 1.5)
    said = said_by(lambda: live(run))
    assert f"may not {verb} {resource}" in said
    assert f"Add the verb '{verb}' on '{resource}'" in said
    ready.api.access.denied.clear()
    if run.lease:
        run.teardown()


def test_without_the_right_to_read_logs_a_worker_lives_all_the_same(ready: Loopback, cluster: Cluster):
    ready.api.access.denied.add((LOGS[0], LOGS[2]))
    assert live(worker(cluster, "manual__nologs")) is None


def test_nothing_is_granted_beyond_one_namespace():
    kinds = {item["kind"] for item in documents("rbac.yaml")}
    assert kinds == {"ServiceAccount", "Role", "RoleBinding"}
    assert {item["metadata"]["namespace"] for item in documents("rbac.yaml")} == {"arcadia"}
    for verb, group, resource in rights(*(d for d in documents("rbac.yaml") if d["kind"] == "Role")):
        assert "*" not in {verb, group, resource}
        assert verb not in {"deletecollection", "escalate", "bind", "impersonate"}
        assert resource not in {"pods/exec", "pods/attach", "serviceaccounts/token"}


def test_every_binding_binds_a_role_that_is_there_to_the_account_that_is_there():
    found: dict[str, list[Any]] = {}
    for item in documents("rbac.yaml"):
        found.setdefault(item["kind"], []).append(item)
    roles = {item["metadata"]["name"] for item in found["Role"]}
    assert {item["roleRef"]["name"] for item in found["RoleBinding"]} == roles
    (account,) = found["ServiceAccount"]
    for binding in found["RoleBinding"]:
        assert binding["subjects"] == [
            {"kind": "ServiceAccount", "name": account["metadata"]["name"], "namespace": "arcadia"}
        ]
