"""Ray clusters by KubeRay in a cluster for tests: what a run asks for, and what is there."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from typing import Any

from kubernetes import client  # noqa: TID253

from airflow_arcadia.kubernetes.kinds import RAY_CLUSTER
from airflow_arcadia.ports import free_port
from tests.conftest import wait_for
from tests.loopback_cluster.cluster import Cluster
from tests.loopback_cluster.controllers.kuberay import KubeRay, loopback_params

RESOURCE = (RAY_CLUSTER.group, RAY_CLUSTER.version)


def start_kuberay(cluster: Cluster) -> None:
    """Run the operator's stand-in, unless the cluster has the operator."""
    cluster.run_controller(KubeRay)
    wait_for(lambda: ray_clusters(cluster) is not None, 20, "RayClusters to be served")


def ray_clusters(cluster: Cluster) -> list[dict[str, Any]] | None:
    """All there are; None where the cluster does not know the kind."""
    try:
        found = cluster.custom.list_namespaced_custom_object(*RESOURCE, cluster.namespace, RAY_CLUSTER.plural)
    except client.ApiException as error:
        if error.status != 404:
            raise
        return None
    items: list[dict[str, Any]] = found["items"]
    return items


@contextlib.contextmanager
def made_here(cluster: Cluster, **more: Any) -> Iterator[dict[str, Any]]:
    """``ray_cluster_spec`` of nodes that can be had in this cluster.

    In the loopback cluster all pods share one address, so that the head takes free ports; and Ray keeps its
    session at a path of the machine, which must be short enough for its sockets.
    """
    spec = {"image": cluster.worker_image, "shm_size": "1Gi", **more}
    if cluster.loopback is None:
        yield spec
        return
    port, dashboard_port = free_port(), free_port()
    with tempfile.TemporaryDirectory(prefix="kuberay-", dir="/tmp") as session:
        params = {**loopback_params(port, dashboard_port, free_port()), "temp-dir": session}
        # The head is the machine's one node: the ranks' processes and memory are its, too.
        yield spec | {
            "port": port,
            "dashboard_port": dashboard_port,
            "ray_start_params": params | {"num-cpus": "4"},
            "head_resources": {"limits": {"memory": "16Gi"}},
        }
