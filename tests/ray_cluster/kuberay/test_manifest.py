"""A RayCluster for one run: what is asked of KubeRay, and what its status means."""

from __future__ import annotations

import json
from typing import Any

import pytest

from airflow_arcadia.config import RayCluster
from airflow_arcadia.exceptions import ArcadiaConfigError
from airflow_arcadia.kubernetes.pod_status import PodSeen
from airflow_arcadia.lease import Identity, Lease
from airflow_arcadia.ray_cluster.kuberay.manifest import ray_cluster
from airflow_arcadia.ray_cluster.kuberay.settings import KubeRaySpec
from airflow_arcadia.ray_cluster.kuberay.status import Coming, judge
from airflow_arcadia.readiness import Trouble

LEASE = Lease("answer-1", Identity("d", "r", "answer"), 0.0, 0.0, uid="u-1")


def made(asked: int = 4, token: bool = False, **spec: Any) -> dict[str, Any]:
    return ray_cluster(LEASE, KubeRaySpec.parse({"image": "worker:1", **spec}), asked, token=token)


def look(status: dict[str, Any] | None, *pods: dict[str, Any], **metadata: Any) -> Any:
    found = None if status is None else {"metadata": {"name": "answer-1", **metadata}, "status": status}
    seen = [PodSeen("p", {"metadata": {"name": "p"}, "spec": {}, "status": pod}) for pod in pods]
    return judge("answer-1", found, seen, now=0.0, unschedulable_grace_s=0.0)


def test_the_gpus_asked_for_are_on_one_node_unless_said_otherwise():
    (group,) = made()["spec"]["workerGroupSpecs"]
    assert group["replicas"] == group["minReplicas"] == group["maxReplicas"] == 1
    container = group["template"]["spec"]["containers"][0]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "4"
    (spread,) = made(gpus_per_node=2, num_gpus=8, resources={"limits": {"cpu": "8"}})["spec"][
        "workerGroupSpecs"
    ]
    assert spread["replicas"] == 4
    limits = spread["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits == {"cpu": "8", "nvidia.com/gpu": "2"}
    with pytest.raises(ArcadiaConfigError, match="4 GPUs on nodes of 3"):
        made(gpus_per_node=3)


def test_every_node_has_shared_memory_the_model_and_the_leases_labels():
    claim = {"persistentVolumeClaim": {"claimName": "models"}}
    body = made(model_volume=claim)["spec"]
    for template in (body["headGroupSpec"]["template"], body["workerGroupSpecs"][0]["template"]):
        assert template["metadata"]["labels"]["airflow-arcadia/lease"] == "answer-1"
        volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
        assert volumes["shm"]["emptyDir"]["medium"] == "Memory"
        assert volumes["model"] == {"name": "model", **claim}
        assert template["spec"]["securityContext"]["runAsNonRoot"]
    assert made()["metadata"]["ownerReferences"][0]["uid"] == "u-1"


def test_a_token_is_asked_for_by_every_node_and_is_in_no_manifest():
    body = made(token=True)
    for group in (body["spec"]["headGroupSpec"], body["spec"]["workerGroupSpecs"][0]):
        env = {item["name"]: item["value"] for item in group["template"]["spec"]["containers"][0]["env"]}
        assert (env["RAY_AUTH_MODE"], env["RAY_AUTH_TOKEN_PATH"]) == ("token", "/etc/arcadia/ray-token")
    assert "RAY_AUTH_MODE" not in json.dumps(made())


def test_a_ready_cluster_is_where_its_status_says():
    status = {
        "state": "ready",
        "head": {"serviceIP": "10.0.0.7", "podIP": "10.0.0.9"},
        "endpoints": {"gcs-server": "6380", "dashboard": "8266"},
    }
    where = look(status)
    assert isinstance(where, RayCluster)
    assert (where.head_address, where.dashboard_url) == ("10.0.0.7:6380", "http://10.0.0.7:8266")
    assert look(status | {"head": {"serviceIP": "None", "podIP": "10.0.0.9"}}) == Coming("its nodes (ready)")


def test_what_is_missing_is_said_while_one_waits():
    assert "its operator installed" in look({}).what
    conditions = [{"type": "HeadPodReady", "status": "False", "reason": "ContainersNotReady"}]
    assert "HeadPodReady: ContainersNotReady" in look({"conditions": conditions}).what
    pending = {"phase": "Pending", "conditions": []}
    assert look({"state": ""} | {"conditions": conditions}, pending).what == "its pod to be scheduled (p)"


def test_a_pod_that_will_not_run_is_the_reason_why_the_cluster_does_not_come_up():
    waiting = {"reason": "ImagePullBackOff", "message": "no such image"}
    pod = {"phase": "Pending", "containerStatuses": [{"name": "ray-head", "state": {"waiting": waiting}}]}
    trouble = look({"state": ""} | {"conditions": []} | {"x": 1}, pod)
    assert isinstance(trouble, Trouble)
    assert "does not come up: Container ray-head of pod p cannot start (ImagePullBackOff)" in trouble.what
    assert "launch_worker" not in trouble.what_to_do


def test_a_cluster_that_is_gone_or_failed_is_no_longer_waited_for():
    assert isinstance(look(None), Trouble)
    assert isinstance(look({}, deletionTimestamp="2026-01-01T00:00:00Z"), Trouble)
    assert "ValidationFailed" in look({"state": "failed", "reason": "ValidationFailed"}).what


def test_a_misspelt_key_is_named():
    with pytest.raises(ArcadiaConfigError, match="Did you mean 'gpus_per_node'"):
        KubeRaySpec.parse({"gpu_per_node": 1})
    with pytest.raises(ArcadiaConfigError, match="has no image"):
        KubeRaySpec.parse({}).require_image()
