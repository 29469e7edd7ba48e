"""The RayCluster object for one run, ``ray.io/v1`` as KubeRay 1.2 and later serve it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow_arcadia.kubernetes.kinds import RAY_CLUSTER, Object, labels_of_lease, owner_reference
from airflow_arcadia.kubernetes.pod_template import (
    CACHES,
    RAY_TOKEN,
    SECRETS_PATH,
    given,
    locked_down,
    mounts,
    pod_security,
    volumes,
)
from airflow_arcadia.lease import Lease
from airflow_arcadia.ray_cluster.kuberay.settings import KubeRaySpec

GROUP = "gpus"
CLUSTER_LABEL = "ray.io/cluster"


def ray_cluster(lease: Lease, spec: KubeRaySpec, asked: int, *, token: bool) -> Object:
    """The RayCluster object, named as its lease.

    :param asked: GPUs that the workers ask for.
    :param token: whether the nodes ask for the token in the Secret of that name.
    """
    count, each = spec.nodes(asked)
    gpus = {"nvidia.com/gpu": str(each)}
    resources = {
        **spec.resources,
        "limits": {**spec.resources.get("limits", {}), **gpus},
        "requests": {**spec.resources.get("requests", {}), **gpus},
    }
    params = {"dashboard-host": "0.0.0.0", "num-gpus": "0"}  # noqa: S104 - the head pod's own network
    params |= {"port": str(spec.port), "dashboard-port": str(spec.dashboard_port)}
    head = _template(lease, spec, "ray-head", spec.head_resources, token=token)
    container = head["spec"]["containers"][0]
    container["ports"] = [
        {"name": "gcs-server", "containerPort": spec.port},
        {"name": "dashboard", "containerPort": spec.dashboard_port},
    ]
    body: Object = {
        "headGroupSpec": {
            "rayStartParams": {**params, **{k: str(v) for k, v in spec.ray_start_params.items()}},
            "template": head,
        },
        "workerGroupSpecs": [
            {
                "groupName": GROUP,
                "replicas": count,
                "minReplicas": count,
                "maxReplicas": count,
                "rayStartParams": {"num-gpus": str(each)},
                "template": _template(lease, spec, "ray-worker", resources, token=token),
            }
        ],
    }
    if spec.ray_version:
        body["rayVersion"] = spec.ray_version
    return {
        "apiVersion": RAY_CLUSTER.api_version,
        "kind": RAY_CLUSTER.kind,
        "metadata": {
            "name": lease.name,
            "labels": labels_of_lease(lease.name),
            "ownerReferences": [owner_reference(lease.name, lease.uid)],
        },
        "spec": body,
    }


def _template(
    lease: Lease, spec: KubeRaySpec, container: str, resources: Mapping[str, Any], *, token: bool
) -> Object:
    env = {**CACHES, "RAY_USAGE_STATS_ENABLED": "0"}
    if token:
        env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": f"{SECRETS_PATH}/{RAY_TOKEN}"}
    return {
        "metadata": {"labels": labels_of_lease(lease.name)},
        "spec": {
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": pod_security(spec.run_as_user),
            "containers": [
                {
                    "name": container,
                    "image": spec.image,
                    "env": [{"name": name, "value": value} for name, value in env.items()],
                    "resources": dict(resources),
                    "securityContext": locked_down(),
                    "volumeMounts": mounts(
                        spec.model_mount_path if spec.model_volume else None, secrets=token
                    ),
                    **given(imagePullPolicy=spec.image_pull_policy),
                }
            ],
            "volumes": volumes(spec.shm_size, spec.model_volume, secret_name(lease) if token else None),
            **given(
                nodeSelector=dict(spec.node_selector),
                tolerations=[dict(item) for item in spec.tolerations],
                imagePullSecrets=[{"name": name} for name in spec.image_pull_secrets],
                serviceAccountName=spec.service_account_name,
                priorityClassName=spec.priority_class_name,
            ),
        },
    }


def secret_name(lease: Lease) -> str:
    """Name of the Secret with the cluster's token."""
    return f"{lease.name}-ray"
