"""A RayCluster made for one run: its specification, its manifest, what its status means. Pure.

``ray.io/v1`` as KubeRay 1.2 and later serve it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from airflow_arcadia.config import DASHBOARD_PORT, GCS_PORT, RayCluster
from airflow_arcadia.exceptions import ArcadiaConfigError
from airflow_arcadia.kubernetes.kinds import RAY_CLUSTER, Object, labels_of_lease, owner_reference
from airflow_arcadia.kubernetes.pod_status import PodSeen, observe_pod, sentence
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
from airflow_arcadia.readiness import Trouble
from airflow_arcadia.validation import Count, Port, PositiveSeconds, Seconds, parse
from airflow_arcadia.worker import parse_num_gpus

GROUP = "gpus"
CLUSTER_LABEL = "ray.io/cluster"
_REFUSED = "InvalidRayCluster"  # KubeRay's event reasons InvalidRayClusterMetadata, …Spec and …Status
_STILL_THERE = "The RayCluster is still there; the teardown removes it."


@dataclass(frozen=True)
class KubeRaySpec:
    """What to make; values are Kubernetes' own JSON.

    :param image: the worker's image: Ray, Python and vLLM must be the same on every node.
    :param num_gpus: GPUs of all nodes; default what the workers ask for.
    :param gpus_per_node: GPUs of each node; default all on one, which is the fastest for tensor parallelism.
    :param ray_version: the image's Ray; default the ``rayVersion`` of the entry of arcadia-config in whose
        place it is made, if any. KubeRay (1.6 and later) probes nodes by HTTP from Ray 2.53 on; where it is
        told no version, by the image's own ``wget``.
    :param resources: further requests and limits of each GPU node; ``nvidia.com/gpu`` is added.
    :param head_resources: requests and limits of the head, which runs no model.
    :param model_volume: volume source of the model's files: every node loads them.
    :param ray_start_params: further parameters of ``ray start`` on the head.
    :param startup_timeout: seconds until all nodes must have joined.
    :param unschedulable_grace: seconds its pods may fit on no node, where an autoscaler adds nodes.
    """

    image: str = ""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    image_pull_secrets: Sequence[str] = ()
    num_gpus: Count | None = None
    gpus_per_node: Count | None = None
    ray_version: str | None = None
    resources: Mapping[str, Any] = field(default_factory=dict)
    head_resources: Mapping[str, Any] = field(
        default_factory=lambda: {"requests": {"cpu": "1", "memory": "4Gi"}, "limits": {"memory": "4Gi"}}
    )
    shm_size: str = "8Gi"
    model_volume: Mapping[str, Any] | None = None
    model_mount_path: str = "/data/models"
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: Sequence[Mapping[str, Any]] = ()
    service_account_name: str | None = None
    priority_class_name: str | None = None
    run_as_user: Count = 1000
    port: Port = GCS_PORT
    dashboard_port: Port = DASHBOARD_PORT
    ray_start_params: Mapping[str, str] = field(default_factory=dict)
    startup_timeout: PositiveSeconds = 900.0
    unschedulable_grace: Seconds = 0.0

    @classmethod
    def parse(cls, raw: Mapping[str, Any] | None) -> KubeRaySpec:
        """The specification from a mapping. Raises :class:`ArcadiaConfigError` naming the key at fault."""
        return parse(cls, raw, "ray_cluster_spec")

    def require_image(self) -> None:
        """Raise :class:`ArcadiaConfigError` when there is no image to run."""
        if not self.image:
            raise ArcadiaConfigError(
                "ray_cluster_spec has no image for the Ray cluster's nodes.",
                what_to_do="Set it to the worker's image.",
            )

    def nodes(self, asked: int) -> tuple[int, int]:
        """How many GPU nodes of how many GPUs each, for workers that ask for ``asked`` GPUs.

        Raises :class:`ArcadiaConfigError` when they cannot be divided so.
        """
        total = parse_num_gpus(self.num_gpus or asked)
        each = parse_num_gpus(self.gpus_per_node or total)
        if total % each:
            raise ArcadiaConfigError(
                f"ray_cluster_spec asks for {total} GPUs on nodes of {each}.",
                what_to_do="Make num_gpus a multiple of gpus_per_node.",
            )
        return total // each, each


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


@dataclass(frozen=True)
class Coming:
    """Not ready yet; what it waits for, as part of a sentence."""

    what: str


def judge(
    name: str,
    found: Mapping[str, Any] | None,
    pods: Sequence[PodSeen],
    *,
    now: float,
    unschedulable_grace_s: float,
    events: Sequence[Mapping[str, Any]] = (),
) -> RayCluster | Coming | Trouble:
    """Where the cluster is once all its nodes are ready; else what is missing, or why it will not come up.

    :param found: the RayCluster; None when the API server says that there is none.
    :param pods: its pods.
    :param events: its own: what KubeRay refuses, it tells by an event alone.
    """
    if found is None or found["metadata"].get("deletionTimestamp"):
        return Trouble(
            f"RayCluster {name} is gone: it was deleted.",
            "Its nodes end with it.",
            "Clear the run from provision_ray_cluster.",
        )
    status = found.get("status") or {}
    waits = []
    for pod in pods:
        seen = observe_pod(pod, now=now, unschedulable_grace_s=unschedulable_grace_s)
        if seen.alive is False and seen.trouble is not None:
            cause = f"RayCluster {name} does not come up: {seen.trouble.what}"
            what_to_do = seen.trouble.what_to_do.replace("launch_worker", "provision_ray_cluster")
            return Trouble(cause, _STILL_THERE, "\n".join([what_to_do, *_log(seen.log_tail)]))
        if seen.doing:
            waits.append(f"{seen.doing} ({pod.name})")
    said = [str(e["message"]) for e in events if str(e.get("reason")).startswith(_REFUSED)]
    said += [str(c.get("message")) for c in _conditions(status, "True") if c["type"] == "ReplicaFailure"]
    refused = said[0] if said else status.get("reason")
    if refused or status.get("state") == "failed":
        return Trouble(
            f"RayCluster {name} does not come up: {sentence(refused or 'KubeRay says that it failed')}",
            _STILL_THERE,
            "See `kubectl describe raycluster`, correct ray_cluster_spec, and clear the task.",
        )
    head = status.get("head") or {}
    host = head.get("serviceIP") or head.get("podIP")
    if status.get("state") == "ready" and host and host != "None":
        return _where(name, host, status.get("endpoints") or {})
    if not status:
        return Coming("KubeRay to take it up (is its operator installed and watching this namespace?)")
    return Coming("; ".join(waits) or f"its nodes ({_lacks(status)})")


def _log(lines: Sequence[str]) -> list[str]:
    return ["Its last log lines:", *lines] if lines else []


def _where(name: str, host: str, endpoints: Mapping[str, Any]) -> RayCluster:
    gcs = endpoints.get("gcs-server") or endpoints.get("gcs") or GCS_PORT
    dashboard = endpoints.get("dashboard") or DASHBOARD_PORT
    return RayCluster(name, f"{host}:{gcs}", dashboard_host=f"{host}:{dashboard}")


def _conditions(status: Mapping[str, Any], value: str) -> list[Mapping[str, Any]]:
    return [c for c in status.get("conditions") or () if c.get("status") == value]


def _lacks(status: Mapping[str, Any]) -> str:
    said = [
        f"{c['type']}: {c.get('reason') or c.get('message') or 'no'}" for c in _conditions(status, "False")
    ]
    return ", ".join(said) or str(status.get("state") or "no state yet")
