"""The kinds of objects this provider creates or reads, and the labels that name their owner."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]
"""A Kubernetes object as JSON."""


@dataclass(frozen=True)
class Kind:
    """Where the API server keeps objects of one kind.

    :param group: API group; empty for the core group.
    :param plural: name of the resource in paths and in RBAC rules.
    """

    group: str
    version: str
    kind: str
    plural: str

    @property
    def api_version(self) -> str:
        """``apiVersion`` of an object."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str, name: str | None = None) -> str:
        """Path of the collection, or of one object."""
        root = f"/apis/{self.api_version}" if self.group else f"/api/{self.version}"
        collection = f"{root}/namespaces/{namespace}/{self.plural}"
        return f"{collection}/{name}" if name else collection


POD = Kind("", "v1", "Pod", "pods")
SERVICE = Kind("", "v1", "Service", "services")
SECRET = Kind("", "v1", "Secret", "secrets")
CONFIG_MAP = Kind("", "v1", "ConfigMap", "configmaps")
EVENT = Kind("", "v1", "Event", "events")
LEASE = Kind("coordination.k8s.io", "v1", "Lease", "leases")
RAY_CLUSTER = Kind("ray.io", "v1", "RayCluster", "rayclusters")
REVIEW = Kind("authorization.k8s.io", "v1", "SelfSubjectAccessReview", "selfsubjectaccessreviews")
WORKER = Kind("arcadia.kubeagi.k8s.com.cn", "v1alpha1", "Worker", "workers")

MANAGED_BY = "app.kubernetes.io/managed-by"
MANAGER = "airflow-provider-arcadia"
LEASE_LABEL = "airflow-arcadia/lease"
WARM_LABEL = "airflow-arcadia/warm"
"""Label of the lease of a warm worker: the digest of what the worker is made from."""
WORKER_LABEL = "arcadia.kubeagi.k8s.com.cn/worker"
"""Arcadia's own label on everything of one worker."""
NAME_LABEL = "app.kubernetes.io/name"


def labels_of_lease(lease: str) -> dict[str, str]:
    """Labels of everything that lease owns: how a teardown finds it without the lease."""
    return {MANAGED_BY: MANAGER, LEASE_LABEL: lease}


def owner_reference(lease_name: str, uid: str) -> Object:
    """Reference to the Lease: the cluster collects what has it once the Lease is deleted."""
    return {"apiVersion": LEASE.api_version, "kind": LEASE.kind, "name": lease_name, "uid": uid}


def owned_by(item: Mapping[str, Any], uid: str) -> bool:
    """Whether the object refers to that owner."""
    return any(ref.get("uid") == uid for ref in item["metadata"].get("ownerReferences") or ())


def selector(labels: Mapping[str, str]) -> str:
    """Label selector that asks for all of them."""
    return ",".join(f"{key}={value}" for key, value in sorted(labels.items()))
