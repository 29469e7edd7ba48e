"""The stand-ins for KubeRay and Arcadia's operator behave as those do, seen through the API."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from kubernetes import client  # noqa: TID253

from airflow_arcadia.ports import free_port
from tests.conftest import wait_for
from tests.loopback_cluster.cluster import Cluster, Image, Loopback, image_of
from tests.loopback_cluster.controllers.arcadia import CONFIG, GROUP, Arcadia
from tests.loopback_cluster.controllers.kuberay import KubeRay
from tests.loopback_cluster.controllers.kuberay_pods import head_pod, worker_pod

RAY = ("ray.io", "v1", "tests", "rayclusters")
WORKERS = (GROUP, "v1alpha1", "tests", "workers")
ANSWER = """
import http.server, json, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(dict(os.environ)).encode())
    def log_message(self, *_): pass
print('up', flush=True)
http.server.HTTPServer(("127.0.0.1", int(os.environ["ARCADIA_PORT"])), Handler).serve_forever()
"""


@pytest.fixture
def rays(cluster: Cluster, loopback: Loopback) -> Cluster:
    """A cluster with the stand-in for KubeRay, and an image whose ``ray`` is a quick one."""
    cluster.run_controller(KubeRay)
    wait_for(lambda: listed(cluster, RAY) is not None, 20, "the resource to be served")
    return cluster


@pytest.fixture
def workers(cluster: Cluster, loopback: Loopback) -> Cluster:
    """A cluster with the stand-in for Arcadia, whose runner image tells its environment."""
    loopback.images["registry.test/runner:0"] = image_of("/usr/bin/python3", "python3", "-c", ANSWER)
    cluster.run_controller(Arcadia)
    wait_for(lambda: listed(cluster, WORKERS) is not None, 20, "the resource to be served")
    return cluster


def listed(cluster: Cluster, where: tuple[str, str, str, str]) -> list[Any] | None:
    try:
        return list(cluster.custom.list_namespaced_custom_object(*where)["items"])
    except client.ApiException:
        return None


def status(cluster: Cluster, where: tuple[str, str, str, str], name: str) -> dict[str, Any]:
    return dict(cluster.custom.get_namespaced_custom_object(*where, name).get("status") or {})


def condition(found: dict[str, Any], kind: str) -> dict[str, Any]:
    return next((c for c in found.get("conditions") or () if c["type"] == kind), {})


def ray_cluster(
    cluster: Cluster, port: int, dashboard: int, image: str | None = None, gpus: str = "1", **metadata: Any
) -> dict[str, Any]:
    """Whose ``ray start`` is a web server at the dashboard's port."""
    script = f"import http.server; http.server.HTTPServer(('127.0.0.1', {dashboard}), type('H', "
    script += "(http.server.BaseHTTPRequestHandler,), {'do_GET': lambda s: (s.send_response(200), "
    script += "s.end_headers())})).serve_forever()"
    image = image or cluster.python_image
    head = {"name": "ray-head", "image": image, "command": ["python3", "-c", script]}
    worker = {"name": "ray-worker", "image": image, "resources": {"limits": {"nvidia.com/gpu": gpus}}}
    template = {"terminationGracePeriodSeconds": 1}
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": {
            "name": "r",
            "annotations": {"ray.io/overwrite-container-cmd": "true"},
            **metadata,
        },
        "spec": {
            "rayVersion": "2.60.0",
            "headGroupSpec": {
                "rayStartParams": {"port": str(port), "dashboard-port": str(dashboard), "num-gpus": "0"},
                "template": {"spec": {**template, "containers": [head]}},
            },
            "workerGroupSpecs": [
                {
                    "groupName": "gpus",
                    "replicas": 2,
                    "minReplicas": 2,
                    "maxReplicas": 2,
                    "template": {"spec": {**template, "containers": [worker]}},
                }
            ],
        },
    }


def test_a_ray_cluster_becomes_ready_and_is_collected(rays: Cluster):
    port, dashboard = free_port(), free_port()
    rays.custom.create_namespaced_custom_object(*RAY, ray_cluster(rays, port, dashboard))
    wait_for(lambda: status(rays, RAY, "r").get("state") == "ready", 30, "the cluster to be ready")
    found = status(rays, RAY, "r")
    assert found["head"] == {
        "podIP": "127.0.0.1",
        "podName": "r-head",
        "serviceIP": "127.0.0.1",
        "serviceName": "r-head-svc",
    }
    assert (found["endpoints"]["gcs-server"], found["endpoints"]["dashboard"]) == (str(port), str(dashboard))
    assert (found["desiredGPU"], found["readyWorkerReplicas"], found["observedGeneration"]) == ("2", 2, 1)
    assert condition(found, "HeadPodReady")["reason"] == "HeadPodRunningAndReady"
    assert condition(found, "RayClusterProvisioned")["reason"] == "AllPodRunningAndReadyFirstTime"
    pods = rays.core.list_namespaced_pod(rays.namespace, label_selector="ray.io/cluster=r").items
    kinds = sorted(pod.metadata.labels["ray.io/node-type"] for pod in pods)
    assert kinds == ["head", "worker", "worker"]
    assert rays.core.read_namespaced_service("r-head-svc", rays.namespace).spec.cluster_ip == "None"
    rays.custom.delete_namespaced_custom_object(*RAY, "r")
    wait_for(lambda: not rays.core.list_namespaced_pod(rays.namespace).items, 60, "its pods to go")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"image": "registry.invalid/ray:1"}, lambda found: condition(found, "HeadPodReady")["reason"]),
        ({"gpus": "64"}, lambda found: condition(found, "RayClusterProvisioned")["reason"]),
    ],
    ids=["ImagePullBackOff", "RayClusterPodsProvisioning"],
)
def test_a_ray_cluster_that_cannot_come_up_says_so(
    rays: Cluster, request: pytest.FixtureRequest, change: dict[str, Any], said: Callable[[Any], str]
):
    wanted = request.node.callspec.id
    body = ray_cluster(rays, free_port(), free_port(), **change)
    rays.custom.create_namespaced_custom_object(*RAY, body)

    def told() -> bool:
        found = status(rays, RAY, "r")
        return bool(found.get("conditions")) and said(found) == wanted

    wait_for(told, 20, f"the cluster to say {wanted}")
    assert "state" not in status(rays, RAY, "r")


def test_what_the_api_refuses_is_told_by_the_ray_clusters_status(rays: Cluster):
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q"}}
    rays.core.create_namespaced_resource_quota(rays.namespace, {**quota, "spec": {"hard": {"pods": "0"}}})
    body = ray_cluster(rays, free_port(), free_port())
    rays.custom.create_namespaced_custom_object(*RAY, body)
    wait_for(lambda: condition(status(rays, RAY, "r"), "ReplicaFailure"), 20, "the failure")
    told = condition(status(rays, RAY, "r"), "ReplicaFailure")
    assert told["reason"] == "FailedCreateHeadPod"
    assert "exceeded quota" in told["message"]


def test_ray_is_started_with_the_parameters_and_the_head_has_the_groups_gpus(rays: Cluster):
    body = ray_cluster(rays, 6379, 8265, uid="u", namespace="tests")
    body["metadata"].pop("annotations")
    body["spec"]["workerGroupSpecs"][0]["numOfHosts"] = 1
    head = head_pod(body)["spec"]["containers"][0]
    assert head["command"] == ["/bin/bash", "-c", "--"]
    assert head["args"][0].startswith(
        "ulimit -n 65536; ray start --head --port=6379 --dashboard-port=8265 --num-gpus=2 --block && python3"
    )
    worker = worker_pod(body, body["spec"]["workerGroupSpecs"][0])
    env = {v["name"]: v["value"] for v in worker["spec"]["containers"][0]["env"]}
    assert env["RAY_ADDRESS"] == "r-head-svc.tests.svc.cluster.local:6379"
    assert env["KUBERAY_GEN_RAY_START_CMD"].startswith("ray start --address=r-head-svc.tests")


def worker(port: int, **spec: Any) -> dict[str, Any]:
    envs = {"NUMBER_GPUS": "2", "RAY_CLUSTER_INDEX": "1", "ARCADIA_PORT": str(port)}
    return {
        "apiVersion": f"{GROUP}/v1alpha1",
        "kind": "Worker",
        "metadata": {"name": "w"},
        "spec": {
            "type": "fastchat-vllm",
            "model": {"kind": "Models", "name": "tiny-llama"},
            "runner": {"image": "registry.test/runner:0"},
            "resources": {"limits": {"cpu": "1", "memory": "1Gi", "nvidia.com/gpu": "1"}},
            "additionalEnvs": [{"name": key, "value": value} for key, value in envs.items()],
            **spec,
        },
    }


def configure(cluster: Cluster) -> None:
    """Two Ray clusters in arcadia-config."""
    text = "gateway: {controller: 'http://controller:21001'}\n"
    text += "rayClusters: [{name: a, headAddress: 'a:6379'}, {name: b, headAddress: 'b:6379'}]\n"
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": CONFIG}, "data": {"config": text}}
    cluster.core.create_namespaced_config_map(cluster.namespace, body)


def ready(cluster: Cluster) -> tuple[str, str]:
    found = condition(status(cluster, WORKERS, "w"), "Ready")
    return found.get("status", ""), found.get("reason", "")


def test_a_worker_goes_online_and_offline_and_is_collected(workers: Cluster):
    configure(workers)
    port = free_port()
    made = workers.custom.create_namespaced_custom_object(*WORKERS, worker(port))
    assert made["spec"]["replicas"] == 1
    wait_for(lambda: ready(workers) == ("True", "Running"), 30, "the worker to run")
    selector = {"label_selector": f"{GROUP}/worker=w"}
    pod = workers.core.list_namespaced_pod(workers.namespace, **selector).items[0]
    assert pod.metadata.name.startswith("w-worker-")
    assert pod.metadata.labels["app.kubernetes.io/name"] == "w-worker"
    service = workers.core.read_namespaced_service("w-worker", workers.namespace)
    import urllib.request

    url = f"http://{service.spec.cluster_ip}:{service.spec.ports[0].port}"

    def environment() -> dict[str, str] | None:
        try:
            with urllib.request.urlopen(url, timeout=5) as response:
                return dict(json.load(response))
        except OSError:
            return None

    env = wait_for(environment, 20, "the Service to reach the runner")
    assert env["FASTCHAT_REGISTRATION_MODEL_NAME"] == made["metadata"]["uid"]
    assert (env["RAY_ADDRESS"], env["RAY_VERSION"], env["PYTHON_VERSION"]) == ("b:6379", "2.9.3", "3.9.5")
    assert env["NUMBER_GPUS"] == "2", "additionalEnvs come last and win"
    assert env["FASTCHAT_WORKER_ADDRESS"] == "http://w-worker.tests:21002"
    assert env["FASTCHAT_MODEL_NAME_PATH"].endswith("/tiny-llama")
    workers.custom.patch_namespaced_custom_object(*WORKERS, "w", {"spec": {"replicas": 0}})
    wait_for(lambda: ready(workers) == ("False", "Offline"), 30, "the worker to be offline")
    wait_for(lambda: not workers.core.list_namespaced_pod(workers.namespace, **selector).items, 60, "no pod")
    workers.custom.patch_namespaced_custom_object(*WORKERS, "w", {"spec": {"replicas": 1}})
    wait_for(lambda: ready(workers) == ("True", "Running"), 30, "the worker to run again")
    assert (
        workers.custom.get_namespaced_custom_object(*WORKERS, "w")["metadata"]["uid"]
        == (made["metadata"]["uid"])
    )
    workers.custom.delete_namespaced_custom_object(*WORKERS, "w")
    wait_for(lambda: not workers.core.list_namespaced_pod(workers.namespace).items, 60, "its pod to go")
    wait_for(
        lambda: not workers.core.list_namespaced_service(workers.namespace).items, 60, "its Service to go"
    )


def test_a_worker_that_cannot_start_is_pending_without_a_reason(workers: Cluster):
    configure(workers)
    body = worker(free_port(), runner={"image": "registry.invalid/none:1"})
    workers.custom.create_namespaced_custom_object(*WORKERS, body)
    wait_for(lambda: ready(workers) == ("False", "Pending"), 20, "the worker to be pending")


@pytest.mark.parametrize(
    ("configured", "spec", "said"),
    [
        (False, {}, "failed to get arcadia config"),
        (True, {"resources": {}}, "panic"),
        (
            True,
            {
                "additionalEnvs": [
                    {"name": "NUMBER_GPUS", "value": "2"},
                    {"name": "RAY_CLUSTER_INDEX", "value": "7"},
                ]
            },
            "index out of range [7] with length 2",
        ),
    ],
    ids=["no config", "no limits", "index out of range"],
)
def test_what_the_operator_gets_wrong_is_an_error(
    workers: Cluster, configured: bool, spec: dict[str, Any], said: str
):
    if configured:
        configure(workers)
    workers.custom.create_namespaced_custom_object(*WORKERS, worker(free_port(), **spec))
    wait_for(lambda: ready(workers) == ("False", "Error"), 20, "the worker's error")
    assert said in condition(status(workers, WORKERS, "w"), "Ready")["message"]


def test_a_workers_model_comes_from_its_claim(workers: Cluster, loopback: Loopback, tmp_path: Any):
    configure(workers)
    (tmp_path / "tiny-llama").mkdir()
    (tmp_path / "tiny-llama" / "config.json").write_text("{}")
    script = "import os, time; print(os.listdir(os.environ['FASTCHAT_MODEL_NAME_PATH'])); time.sleep(60)"
    loopback.images["registry.test/runner:0"] = Image(
        image_of("/usr/bin/python3").env, ("python3", "-u", "-c", script)
    )
    loopback.fill_claim("w-worker", tmp_path)
    storage = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    workers.custom.create_namespaced_custom_object(*WORKERS, worker(free_port(), storage=storage))
    wait_for(lambda: ready(workers) == ("True", "Running"), 30, "the worker to run")
    pod = workers.core.list_namespaced_pod(workers.namespace).items[0].metadata.name
    wait_for(lambda: "config.json" in workers.log(pod), 10, "the model's files")
