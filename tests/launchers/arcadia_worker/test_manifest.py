"""Arcadia's Worker from settings, and what its conditions mean: pure."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from airflow_arcadia.exceptions import ArcadiaConfigError
from airflow_arcadia.kubernetes.pod_status import PodSeen
from airflow_arcadia.launchers.arcadia_worker.manifest import check_fits, gpus_of, placed_worker, worker
from airflow_arcadia.launchers.arcadia_worker.settings import WorkerResourceSettings
from airflow_arcadia.launchers.arcadia_worker.status import WorkerSeen, newest, observe_worker
from airflow_arcadia.lease import Identity, Lease
from airflow_arcadia.worker import WorkerSpec

LEASE = Lease("answer-0123456789", Identity("d", "r", "answer"), 0.0, 0.0, uid="lease-uid")
SPEC = WorkerSpec(name=LEASE.name, model="qwen-7b", num_gpus=2, ray_cluster_index=1)
LIMITS = {"limits": {"cpu": "4", "memory": "16Gi", "nvidia.com/gpu": "1"}}
WHERE = {"worker": "w", "uid": "u", "container": "runner"}


def made(spec: WorkerSpec = SPEC, **settings: Any) -> dict[str, Any]:
    parsed = WorkerResourceSettings.parse({"resources": LIMITS, **settings})
    return worker(placed_worker(spec, parsed, "ns"), LEASE, parsed, "ns")


def envs(manifest: dict[str, Any]) -> dict[str, Any]:
    return {
        item["name"]: item.get("value", item.get("valueFrom")) for item in manifest["spec"]["additionalEnvs"]
    }


def test_the_worker_says_what_arcadia_needs_and_nothing_else():
    manifest = made()
    assert manifest["apiVersion"] == "arcadia.kubeagi.k8s.com.cn/v1alpha1"
    assert manifest["spec"] == {
        "type": "fastchat-vllm",
        "model": {
            "apiGroup": "arcadia.kubeagi.k8s.com.cn",
            "kind": "Model",
            "name": "qwen-7b",
            "namespace": "ns",
        },
        "replicas": 1,
        "resources": LIMITS,
        "additionalEnvs": [
            {"name": "NUMBER_GPUS", "value": "2"},
            {"name": "RAY_CLUSTER_INDEX", "value": "1"},
        ],
    }
    assert manifest["metadata"]["name"] == LEASE.name
    assert manifest["metadata"]["labels"]["airflow-arcadia/lease"] == LEASE.name
    assert manifest["metadata"]["ownerReferences"][0]["uid"] == "lease-uid"


def test_both_variables_are_there_for_one_gpu_too():
    assert envs(made(replace(SPEC, num_gpus=1, ray_cluster_index=0))) == {
        "NUMBER_GPUS": "1",
        "RAY_CLUSTER_INDEX": "0",
    }


def test_the_users_variables_come_last_and_win():
    spec = replace(
        SPEC, additional_envs={"A": "theirs", "RAY_CLUSTER_INDEX": " 3 "}, extra_args=("--seed", "1")
    )
    found = made(
        spec, additional_envs=[{"name": "A", "value": "settings"}, {"name": "EXTRA_ARGS", "value": "x"}]
    )
    assert envs(found) == {"NUMBER_GPUS": "2", "RAY_CLUSTER_INDEX": "3", "EXTRA_ARGS": "x", "A": "theirs"}
    names = [item["name"] for item in found["spec"]["additionalEnvs"]]
    assert names[:2] == ["NUMBER_GPUS", "RAY_CLUSTER_INDEX"]
    assert len(names) == len(set(names))


def test_an_image_of_ours_is_told_where_to_listen_and_the_engines_limits():
    spec = replace(SPEC, max_num_seqs=8, gpu_memory_utilization=0.8, ray_address="head:6379")
    found = envs(made(spec, runner={"image": "ours:1"}))
    assert found == {
        "NUMBER_GPUS": "2",
        "RAY_CLUSTER_INDEX": "1",
        "GPU_MEMORY_UTILIZATION": "0.8",
        "ARCADIA_HOST": "0.0.0.0",
        "ARCADIA_PORT": "21002",
        "ARCADIA_NODE_GPUS": "1",
        "ARCADIA_MAX_NUM_SEQS": "8",
    }


@pytest.mark.parametrize(
    "image",
    [
        None,
        "kubeagi/arcadia-fastchat-worker:v0.2.0",
        "registry.example.com:5000/mirror/arcadia-fastchat-worker:vllm-v0.2.36",
        "kubeagi/arcadia-fastchat-worker@sha256:0123",
    ],
)
def test_a_limit_that_arcadias_own_image_would_ignore_is_refused(image: str | None):
    settings = {"runner": {"image": image}} if image else {}
    with pytest.raises(ArcadiaConfigError, match="does not know max_num_seqs"):
        made(replace(SPEC, max_num_seqs=8), **settings)


def test_a_secret_by_reference_is_passed_on_and_one_in_clear_refused():
    by_reference = {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hf", "key": "token"}}}
    assert envs(made(additional_envs=[by_reference]))["HF_TOKEN"] == by_reference["valueFrom"]
    with pytest.raises(ArcadiaConfigError, match="HF_TOKEN, which looks like a secret"):
        made(additional_envs=[{"name": "HF_TOKEN", "value": "x"}])
    with pytest.raises(ArcadiaConfigError, match="HF_TOKEN, which looks like a secret"):
        made(replace(SPEC, additional_envs={"HF_TOKEN": "x"}))


@pytest.mark.parametrize("resources", [{}, {"limits": {}}, {"requests": {"cpu": "1"}}])
def test_a_worker_without_limits_is_refused(resources: dict[str, Any]):
    with pytest.raises(ArcadiaConfigError, match="no limits"):
        made(resources=resources)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"resource": {}}, "unknown key 'resource'. Did you mean 'resources'"),
        ({"type": "fastchat"}, "type is 'fastchat'"),
        ({"teardown": "stop"}, "teardown is 'stop'"),
        ({"teardown": "offline"}, "no name"),
        ({"existing": True}, "no name"),
        ({"existing": True, "name": "w", "teardown": "delete", "resources": {}}, "would delete Worker w"),
        ({"existing": True, "name": "w"}, "has resources, but Worker w exists"),
        ({"additional_envs": [{"name": "NUMBER_GPUS", "value": "2"}]}, "Give it as num_gpus"),
        ({"additional_envs": ["A=1"]}, r"additional_envs\[0\] is 'A=1', not a mapping"),
        ({"ray_cluster_index": "first"}, "ray_cluster_index is 'first', not a whole number"),
        ({"worker_url": "http://{host}"}, "unknown field"),
    ],
)
def test_settings_that_make_no_sense_are_named(wrong: dict[str, Any], said: str):
    with pytest.raises(ArcadiaConfigError) as error:
        made(**wrong)
    assert re.search(said, str(error.value))


def test_a_worker_that_is_kept_does_not_go_with_the_lease():
    manifest = made(name="qwen", teardown="offline")
    assert manifest["metadata"] == {
        "name": "qwen",
        "labels": {
            "app.kubernetes.io/managed-by": "airflow-provider-arcadia",
            "arcadia.kubeagi.k8s.com.cn/worker": "qwen",
        },
    }


def test_an_existing_worker_must_be_what_was_asked_for():
    found = made(name="w")
    settings = WorkerResourceSettings(name="w", existing=True)
    check_fits(found, SPEC, settings)
    check_fits(found, replace(SPEC, num_gpus=1), settings)
    assert gpus_of(found) == 2
    with pytest.raises(ArcadiaConfigError, match="serves model 'qwen-7b', not 'other'"):
        check_fits(found, replace(SPEC, model="other"), settings)
    with pytest.raises(ArcadiaConfigError, match="NUMBER_GPUS 2, not 4"):
        check_fits(found, replace(SPEC, num_gpus=4), settings)


def test_without_the_variable_the_gpus_are_the_pods_own():
    assert gpus_of({"spec": {"resources": {"limits": {"nvidia.com/gpu": "4"}}}}) == 4
    assert gpus_of({"spec": {"resources": {"limits": {"cpu": "4"}}}}) == 1
    assert gpus_of({"spec": {"resources": {"limits": {"nvidia.com/gpu": 0}}}}) == 1


def seen(reason: str = "", message: str = "", pod: dict[str, Any] | None = None, **more: Any) -> WorkerSeen:
    found: dict[str, Any] = {"metadata": {"name": "w", "uid": "u"}, "spec": {"replicas": 1}, "status": {}}
    if reason:
        status = "True" if reason == "Running" else "False"
        condition = {"type": "Ready", "status": status, "reason": reason, "message": message}
        found["status"] = {"conditions": [condition | {"lastTransitionTime": "2026-01-01T00:00:00Z"}]}
    body = (
        None
        if pod is None
        else PodSeen("w-worker-1", {"metadata": {"name": "w-worker-1"}, **pod}, (), ["last"])
    )
    return WorkerSeen({**found, **more}, body)


def waiting(reason: str) -> dict[str, Any]:
    state = {"waiting": {"reason": reason, "message": "no such image"}}
    return {"status": {"phase": "Pending", "containerStatuses": [{"name": "runner", "state": state}]}}


RUNNING = {
    "status": {"phase": "Running", "containerStatuses": [{"name": "runner", "state": {"running": {}}}]}
}


def test_a_running_container_is_alive_and_the_model_still_to_be_asked():
    found = observe_worker(seen("Running", pod=RUNNING), WHERE, now=0)
    assert (found.alive, found.doing, list(found.log_tail)) == (True, "", ["last"])


@pytest.mark.parametrize(
    ("look", "doing"),
    [
        (seen(), "Arcadia's operator to take it up"),
        (seen("Pending"), "make its pod"),
        (seen("Pending", pod={"status": {"phase": "Pending"}}), "its pod to be scheduled"),
    ],
)
def test_a_pending_worker_says_what_it_waits_for(look: WorkerSeen, doing: str):
    found = observe_worker(look, WHERE, now=0)
    assert found.alive is True
    assert doing in found.doing


@pytest.mark.parametrize("reason", ["Pending", "Error"])
def test_its_pods_reason_is_told_because_arcadia_shows_none(reason: str):
    found = observe_worker(seen(reason, "Reason:… Message:…", waiting("ImagePullBackOff")), WHERE, now=0)
    assert found.alive is False
    assert found.exit_reason == "ImagePullBackOff"
    assert found.trouble is not None
    assert "Worker w does not run" in found.trouble.what
    assert "no such image" in found.trouble.what


def test_an_error_is_told_in_arcadias_own_words():
    found = observe_worker(seen("Error", "failed to get model qwen"), WHERE, now=0)
    assert found.alive is False
    assert found.trouble is not None
    assert "failed to get model qwen." in found.trouble.what


def test_offline_is_trouble_unless_it_was_so_before_it_was_taken_online():
    before = WHERE | {"offline_since": "2026-01-01T00:00:00Z"}
    assert observe_worker(seen("Offline"), before, now=0).alive is True
    later = observe_worker(seen("Offline"), before | {"offline_since": "2025-12-31T00:00:00Z"}, now=0)
    at_once = observe_worker(seen("Running", spec={"replicas": 0}), before, now=0)
    for found in (later, at_once, observe_worker(seen("Offline"), WHERE, now=0)):
        assert found.alive is False
        assert found.trouble is not None
        assert found.trouble.what == "Worker w was taken offline."


def test_a_worker_that_is_gone_or_another_of_its_name_is_deleted():
    for look in (WorkerSeen(None), seen("Running", metadata={"name": "w", "uid": "another"})):
        found = observe_worker(look, WHERE, now=0)
        assert (found.alive, found.exit_reason) == (False, "deleted")
    going = {"name": "w", "uid": "u", "deletionTimestamp": "2026-01-01T00:00:00Z"}
    assert observe_worker(seen("Running", metadata=going), WHERE, now=0).exit_reason == "being deleted"


def test_the_newest_pod_that_stays_is_the_one_that_counts():
    def pod(name: str, at: str, **more: str) -> dict[str, Any]:
        return {"metadata": {"name": name, "creationTimestamp": at, **more}}

    old, new = pod("old", "2026-01-01T00:00:00Z"), pod("new", "2026-01-02T00:00:00Z")
    going = pod("going", "2026-01-03T00:00:00Z", deletionTimestamp="2026-01-03T00:00:01Z")
    assert newest([new, old, going]) is new
    assert newest([going]) is None
