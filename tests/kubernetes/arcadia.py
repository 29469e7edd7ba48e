"""Arcadia in a cluster for tests: its operator's stand-in, its configuration, an image that answers."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from kubernetes import client  # noqa: TID253

from tests.conftest import wait_for
from tests.kubernetes.workers import STAND_IN, pods_share_an_address, where
from tests.loopback_cluster.cluster import Cluster
from tests.loopback_cluster.controllers.arcadia import CONFIG, GROUP, PORT, Arcadia

RUNNER = "registry.test/runner:0"
LIMITS = {"limits": {"cpu": "1", "memory": "1Gi"}}
RESOURCE = (GROUP, "v1alpha1")


def start_arcadia(cluster: Cluster, *, runner: str = STAND_IN) -> None:
    """Run the operator's stand-in; skips the test where the operator itself is.

    :param runner: the program of the image :data:`RUNNER`.
    """
    if cluster.loopback is None and cluster.has_operator(Arcadia):
        pytest.skip("Arcadia's own operator would pull the image of the test's program")
    run_as_runner(cluster, runner)
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
    cluster.run_controller(Arcadia, programs=cluster.programs)
    wait_for(lambda: workers(cluster) is not None, 20, "Workers to be served")


def run_as_runner(cluster: Cluster, program: str) -> None:
    """Let pods of the image :data:`RUNNER` that are made from now on run this Python program."""
    cluster.programs[RUNNER] = (cluster.python_image, ["python3", "-u", "-c", program])


def made_here(**more: Any) -> dict[str, Any]:
    """Settings of a Worker that is quick to be ready."""
    variables, reached = listening()
    return {
        "resources": LIMITS,
        "runner": {"image": RUNNER},
        "additional_envs": variables,
        **reached,
        **more,
    }


def listening() -> tuple[list[dict[str, str]], dict[str, str]]:
    """Variables that tell a runner where to listen, and settings that tell Airflow where it is reached."""
    found = where()
    at = {"ARCADIA_HOST": str(found["host"]), "ARCADIA_PORT": str(found.get("port", PORT))}
    reached = {"worker_url": found["worker_url"]} if pods_share_an_address() else {}
    return [{"name": key, "value": value} for key, value in at.items()], reached


def made_before(cluster: Cluster, name: str, *, replicas: int = 0, **spec: Any) -> dict[str, str]:
    """Make somebody else's Worker; returns the settings that tell Airflow where it is reached."""
    variables, reached = listening()
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
            "additionalEnvs": [*given, *variables],
            **spec,
        },
    }
    cluster.custom.create_namespaced_custom_object(*RESOURCE, cluster.namespace, "workers", body)
    state = "Running" if replicas else "Offline"
    wait_for(lambda: reason(cluster, name) == state, 20, f"Worker {name} to be {state}")
    return reached


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
