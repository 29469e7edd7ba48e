"""Ray clusters in a namespace, through the operator: made for a run by KubeRay, or only used."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from airflow.sdk.exceptions import AirflowFailException

from airflow_arcadia.exceptions import ArcadiaError, RayAuthenticationError
from airflow_arcadia.lease import Identity, Lease
from airflow_arcadia.operators.ray_cluster import ArcadiaProvisionRayClusterOperator
from airflow_arcadia.ray_cluster.kuberay.manifest import ray_cluster
from airflow_arcadia.ray_cluster.kuberay.settings import KubeRaySpec
from airflow_arcadia.ray_dashboard import RayDashboard
from tests.airflow_context import make_context
from tests.conftest import wait_for
from tests.kubernetes.rays import RESOURCE, made_here, ray_clusters, start_kuberay
from tests.kubernetes.workers import Run, connect, told_in_time
from tests.loopback_cluster.cluster import Cluster, Loopback

TOKEN = "the-ray-token"
SOMEBODYS = Lease("somebodys", Identity("", "", ""), 0.0, 0.0)
NOWHERE = {"num_gpus": 64, "head_resources": {"requests": {"cpu": "1000"}}}
"""Of nodes that fit on no node of the cluster."""


@pytest.fixture
def run(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    connect(monkeypatch, cluster, ray_token=TOKEN)
    start_kuberay(cluster)
    made = Run(cluster)
    made.reserve()
    yield made
    made.teardown(grace=1)
    assert made.objects == []


def provision(run: Run, *, try_number: int = 1, **kwargs: Any) -> dict[str, Any]:
    """The connection."""
    given = {"num_gpus": 2, "create": "if_missing", **kwargs}
    operator = ArcadiaProvisionRayClusterOperator(task_id="provision", lease=run.lease, **given)
    connection = operator.execute(make_context(run.run_id, try_number=try_number))
    assert connection is not None
    return connection


def failure(run: Run, **spec: Any) -> str:
    """Why no Ray cluster is to be had."""
    with pytest.raises((ArcadiaError, AirflowFailException)) as failed:
        provision(run, ray_cluster_spec={"image": run.cluster.python_image, **spec})
    return str(failed.value)


def nodes(cluster: Cluster) -> list[dict[str, Any]]:
    """Pods of all Ray clusters."""
    found = cluster.core.list_namespaced_pod(cluster.namespace, label_selector="ray.io/is-ray-node=yes")
    items: list[dict[str, Any]] = cluster.core.api_client.sanitize_for_serialization(found)["items"]
    return items


@pytest.mark.engine
def test_a_cluster_is_made_once_asks_for_its_token_and_ends_with_the_lease(run: Run, cluster: Cluster):
    with made_here(cluster) as spec:
        first = provision(run, ray_cluster_spec=spec)
        assert (first["created"], first["gpus_total"], first["index"]) == (True, 2.0, 0)
        (made,) = ray_clusters(cluster) or ()
        lease = cluster.coordination.read_namespaced_lease(run.lease, cluster.namespace)
        assert made["metadata"]["ownerReferences"][0]["uid"] == lease.metadata.uid
        assert TOKEN not in json.dumps([made, nodes(cluster)])
        kept = cluster.core.read_namespaced_secret(f"{run.lease}-ray", cluster.namespace)
        assert base64.b64decode(kept.data["ray-token"]).decode() == TOKEN
        with pytest.raises(RayAuthenticationError, match="no token was sent"):
            asyncio.run(RayDashboard(first["dashboard_url"]).facts())
        assert provision(run, try_number=2, ray_cluster_spec=spec) == first
        (again,) = ray_clusters(cluster) or ()
        assert again["metadata"]["uid"] == made["metadata"]["uid"]
        run.teardown()
        assert run.objects == []
        assert nodes(cluster) == []
        assert not asyncio.run(RayDashboard(first["dashboard_url"], token=TOKEN).answers())


@pytest.mark.engine
def test_an_existing_cluster_is_only_used_wherever_arcadia_config_is(
    run: Run, cluster: Cluster, loopback: Loopback, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    with made_here(cluster) as spec:
        body = ray_cluster(SOMEBODYS, KubeRaySpec.parse(spec), 2, token=False)
        body["metadata"] = {"name": "gpus"}
        cluster.custom.create_namespaced_custom_object(*RESOURCE, cluster.namespace, "rayclusters", body)

        def up() -> bool:
            (found,) = ray_clusters(cluster) or ()
            return (found.get("status") or {}).get("state") == "ready"

        wait_for(up, 60, "the Ray cluster to be ready")
        before = ray_clusters(cluster), [pod["metadata"]["uid"] for pod in nodes(cluster)]
        head = {
            "name": "gpus",
            "headAddress": f"127.0.0.1:{spec['port']}",
            "dashboardHost": f"http://127.0.0.1:{spec['dashboard_port']}",
        }
        away = {"name": "away", "headAddress": "127.0.0.1:9", "dashboardHost": "http://127.0.0.1:9"}
        text = yaml.safe_dump({"rayClusters": [away, head]})
        (tmp_path / "arcadia-config.yaml").write_text(text)
        in_cluster = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "c"},
            "data": {"config": text},
        }
        cluster.core.create_namespaced_config_map(cluster.namespace, in_cluster)
        loopback.deny("create", "rayclusters")  # and count what is asked for
        for where in (
            {"arcadia_config_yaml": text},
            {"arcadia_config_yaml": "", "arcadia_config": str(tmp_path / "arcadia-config.yaml")},
            {"arcadia_config_yaml": "", "arcadia_config_map": "c"},
        ):
            connect(monkeypatch, cluster, **where)
            for chosen in ("gpus", 1, "auto"):
                found = provision(run, ray_cluster=chosen, ray_cluster_spec=spec)
                assert (found["name"], found["index"], found["created"]) == ("gpus", 1, False)
            run.teardown()
            run.reserve()
        assert (ray_clusters(cluster), [pod["metadata"]["uid"] for pod in nodes(cluster)]) == before
        used = {verb for verb, _, resource in loopback.api.access.used if resource == "rayclusters"}
        assert used == {"list"}, "a teardown looks for its own"
        cluster.custom.delete_namespaced_custom_object(*RESOURCE, cluster.namespace, "rayclusters", "gpus")
        wait_for(lambda: nodes(cluster) == [], 60, "its nodes to go")


def waits_for(cluster: Cluster, wanted: str) -> bool:
    """Whether a container or a condition of a node has that reason."""
    statuses = [pod.get("status") or {} for pod in nodes(cluster)]
    states = [
        s for status in statuses for c in status.get("containerStatuses") or () for s in c["state"].values()
    ]
    conditions = [c for status in statuses for c in status.get("conditions") or ()]
    return wanted in {item.get("reason") for item in [*states, *conditions]}


@pytest.mark.parametrize(
    ("spec", "wanted", "said"),
    [
        ({"image": "registry.invalid/ray:1"}, "ImagePullBackOff", r"ImagePullBackOff.*image_pull_secrets"),
        ({"num_gpus": 64}, "Unschedulable", "Insufficient nvidia.com/gpu"),
        ({}, "CrashLoopBackOff", r"Its last log lines:.*ray: command not found"),
    ],
    ids=["ImagePullBackOff", "Unschedulable", "CrashLoopBackOff"],
)
def test_why_it_does_not_come_up_is_named_within_seconds(
    run: Run, cluster: Cluster, spec: dict[str, Any], wanted: str, said: str
):
    told = told_in_time(lambda: waits_for(cluster, wanted), lambda: failure(run, **spec))
    assert re.search(f"RayCluster {run.lease} does not come up: .*{said}", told, re.DOTALL)
    assert "the teardown removes it" in told


def test_what_kuberay_refuses_is_named_though_only_an_event_tells_it(run: Run, cluster: Cluster):
    def said() -> bool:
        events = cluster.core.list_namespaced_event(cluster.namespace).items
        return any(event.reason == "InvalidRayClusterSpec" for event in events)

    told = told_in_time(said, lambda: failure(run, ray_start_params={"labels": "a=b"}))
    assert "rayStartParams['labels'] is not supported" in told


def test_a_used_up_quota_is_named(run: Run, cluster: Cluster):
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q"}}
    cluster.core.create_namespaced_resource_quota(
        cluster.namespace, {**quota, "spec": {"hard": {"pods": "0"}}}
    )
    assert "exceeded quota: q" in failure(run)


def test_one_deleted_by_hand_is_named(run: Run, cluster: Cluster):
    def delete() -> None:
        wait_for(lambda: nodes(cluster), 30, "its nodes")
        cluster.custom.delete_namespaced_custom_object(*RESOURCE, cluster.namespace, "rayclusters", run.lease)

    by_hand = threading.Thread(target=delete)
    by_hand.start()
    # Its pods can never be ready: they wait for a node that comes later.
    told = told_in_time(
        lambda: not by_hand.is_alive(), lambda: failure(run, unschedulable_grace=60, **NOWHERE)
    )
    assert f"RayCluster {run.lease} is gone: it was deleted" in told


def test_deleting_the_lease_is_enough(run: Run, cluster: Cluster):
    assert "was not ready within" in failure(run, unschedulable_grace=60, startup_timeout=0.5, **NOWHERE)
    cluster.coordination.delete_namespaced_lease(run.lease, cluster.namespace)
    wait_for(lambda: run.objects == [], 60, "everything to be collected")


def test_an_api_server_that_is_away_is_waited_for(run: Run, loopback: Loopback):
    def away() -> None:
        with loopback.api_away():
            time.sleep(2)  # how long it is away: what is tested, not what is waited for

    outage = threading.Thread(target=away)
    outage.start()
    assert "fits on no node" in failure(run, unschedulable_grace=4, **NOWHERE)
    outage.join()


def test_a_missing_right_is_named(run: Run, loopback: Loopback):
    loopback.deny("create", "rayclusters")
    assert 'may not create rayclusters of API group "ray.io"' in failure(run)
    loopback.obey_all()


def test_a_cluster_of_somebody_elses_is_not_taken_over(run: Run, cluster: Cluster):
    body = ray_cluster(SOMEBODYS, KubeRaySpec(image="registry.invalid/ray:1"), 2, token=False)
    body["metadata"] = {"name": run.lease}
    cluster.custom.create_namespaced_custom_object(*RESOURCE, cluster.namespace, "rayclusters", body)
    assert f"RayCluster {run.lease} already exists and belongs to something else" in failure(run)
    run.teardown()
    assert len(ray_clusters(cluster) or ()) == 1
    cluster.custom.delete_namespaced_custom_object(*RESOURCE, cluster.namespace, "rayclusters", run.lease)


def test_the_ray_version_of_the_entry_it_stands_in_for_is_told_to_kuberay(
    run: Run, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
):
    entry = {"name": "away", "headAddress": "127.0.0.1:9", "dashboardHost": "http://127.0.0.1:9"}
    config = yaml.safe_dump({"rayClusters": [{**entry, "rayVersion": "2.60.0"}]})
    connect(monkeypatch, cluster, arcadia_config_yaml=config)
    failure(run, unschedulable_grace=60, startup_timeout=0.5, **NOWHERE)
    (made,) = ray_clusters(cluster) or ()
    assert made["spec"]["rayVersion"] == "2.60.0"
