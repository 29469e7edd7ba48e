"""Arcadia in the loopback cluster: its operator's stand-in, its configuration, an image that answers."""

from __future__ import annotations

import sys
from typing import Any

import yaml
from kubernetes import client  # noqa: TID253

from airflow_arcadia.ports import free_port
from tests.conftest import wait_for
from tests.kubernetes.workers import STAND_IN
from tests.loopback_cluster.cluster import Cluster, Loopback, image_of
from tests.loopback_cluster.controllers.arcadia import CONFIG, GROUP, Arcadia

RUNNER = "registry.test/runner:0"
LIMITS = {"limits": {"cpu": "1", "memory": "1Gi"}}
RESOURCE = (GROUP, "v1alpha1")


def start_arcadia(cluster: Cluster, loopback: Loopback, *, runner: str = STAND_IN) -> None:
    """Run the operator's stand-in.

    :param runner: the program of the image :data:`RUNNER`.
    """
    loopback.images[RUNNER] = image_of(sys.executable, "python3", "-u", "-c", runner)
    configuration = {
        "gateway": {"controller": "http://127.0.0.1:9"},
        "rayClusters": [{"name": "two-gpus", "headAddress": "127.0.0.1:9"}],
    }
    body = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": CONFIG},
        "data": {"config": yaml.safe_dump(configuration)},
    }
    cluster.core.create_namespaced_config_map(cluster.namespace, body)
    cluster.run_controller(Arcadia)
    wait_for(lambda: workers(cluster) is not None, 20, "Workers to be served")


def made_here(**more: Any) -> dict[str, Any]:
    """Settings of a Worker that is quick to be ready."""
    port = free_port()
    return {
        "resources": LIMITS,
        "runner": {"image": RUNNER},
        "additional_envs": at(port),
        "worker_url": f"http://127.0.0.1:{port}",
        **more,
    }


def at(port: int) -> list[dict[str, str]]:
    """Variables of a runner that listens there: in the loopback cluster all pods share one address."""
    return [{"name": "ARCADIA_HOST", "value": "127.0.0.1"}, {"name": "ARCADIA_PORT", "value": str(port)}]


def made_before(cluster: Cluster, name: str, *, replicas: int = 0, **spec: Any) -> str:
    """Somebody else's Worker, and the URL it will be at."""
    port = free_port()
    given = [{"name": "NUMBER_GPUS", "value": "1"}, {"name": "RAY_CLUSTER_INDEX", "value": "0"}]
    body = {
        "apiVersion": "/".join(RESOURCE),
        "kind": "Worker",
        "metadata": {"name": name},
        "spec": {
            "type": "fastchat-vllm",
            "model": {"kind": "Model", "name": "m/tiny"},
            "replicas": replicas,
            "resources": LIMITS,
            "runner": {"image": RUNNER},
            "additionalEnvs": [*given, *at(port)],
            **spec,
        },
    }
    cluster.custom.create_namespaced_custom_object(*RESOURCE, cluster.namespace, "workers", body)
    state = "Running" if replicas else "Offline"
    wait_for(lambda: reason(cluster, name) == state, 20, f"Worker {name} to be {state}")
    return f"http://127.0.0.1:{port}"


def workers(cluster: Cluster) -> list[dict[str, Any]] | None:
    """The Workers; None while the kind is not served."""
    try:
        found = cluster.custom.list_namespaced_custom_object(*RESOURCE, cluster.namespace, "workers")
    except client.ApiException:
        return None
    return list(found["items"])


def worker(cluster: Cluster, name: str) -> dict[str, Any] | None:
    """The Worker; None when there is none."""
    return next((w for w in workers(cluster) or () if w["metadata"]["name"] == name), None)


def change(cluster: Cluster, name: str, body: dict[str, Any]) -> None:
    """Change it by hand."""
    cluster.custom.patch_namespaced_custom_object(*RESOURCE, cluster.namespace, "workers", name, body)


def delete(cluster: Cluster, name: str) -> None:
    """Delete it by hand."""
    cluster.custom.delete_namespaced_custom_object(*RESOURCE, cluster.namespace, "workers", name)


def reason(cluster: Cluster, name: str) -> str | None:
    """What Arcadia says of it."""
    conditions = ((worker(cluster, name) or {}).get("status") or {}).get("conditions") or ()
    return next((c["reason"] for c in conditions if c["type"] == "Ready"), None)


def pods(cluster: Cluster, name: str) -> list[str]:
    """Names of its pods."""
    labels = f"{GROUP}/worker={name}"
    found = cluster.core.list_namespaced_pod(cluster.namespace, label_selector=labels)
    return [pod.metadata.name for pod in found.items]
