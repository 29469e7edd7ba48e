"""The resources the API knows, and how a request's path names one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tests.loopback_cluster.api.status import not_found_path


@dataclass(frozen=True)
class Kind:
    """One resource.

    :param model: name of the official client's model class, which is the schema; None for a custom one.
    :param schema: OpenAPI v3 schema of a custom resource, from its definition.
    :param blind_update: whether a PUT may leave the resourceVersion out.
    """

    group: str
    version: str
    plural: str
    name: str
    model: str | None = None
    namespaced: bool = True
    has_status: bool = False
    blind_update: bool = True
    schema: dict[str, Any] = field(default_factory=dict, hash=False, compare=False)

    @property
    def api_version(self) -> str:
        """As objects state it."""
        return f"{self.group}/{self.version}" if self.group else self.version


BUILT_IN = (
    Kind("", "v1", "namespaces", "Namespace", "V1Namespace", namespaced=False, has_status=True),
    Kind("", "v1", "nodes", "Node", "V1Node", namespaced=False, has_status=True),
    Kind("", "v1", "pods", "Pod", "V1Pod", has_status=True),
    Kind("", "v1", "services", "Service", "V1Service", has_status=True),
    Kind("", "v1", "secrets", "Secret", "V1Secret"),
    Kind("", "v1", "configmaps", "ConfigMap", "V1ConfigMap"),
    Kind("", "v1", "events", "Event", "CoreV1Event"),
    Kind("", "v1", "resourcequotas", "ResourceQuota", "V1ResourceQuota", has_status=True),
    Kind("", "v1", "serviceaccounts", "ServiceAccount", "V1ServiceAccount"),
    Kind(
        "",
        "v1",
        "persistentvolumeclaims",
        "PersistentVolumeClaim",
        "V1PersistentVolumeClaim",
        has_status=True,
    ),
    Kind("apps", "v1", "deployments", "Deployment", "V1Deployment", has_status=True),
    Kind("coordination.k8s.io", "v1", "leases", "Lease", "V1Lease", blind_update=False),
    Kind("scheduling.k8s.io", "v1", "priorityclasses", "PriorityClass", "V1PriorityClass", namespaced=False),
    Kind(
        "apiextensions.k8s.io",
        "v1",
        "customresourcedefinitions",
        "CustomResourceDefinition",
        "V1CustomResourceDefinition",
        namespaced=False,
        has_status=True,
        blind_update=False,
    ),
)


@dataclass(frozen=True)
class Target:
    """What a path names: a collection (no name), an object, or a part of one (``status``, ``log``, …)."""

    kind: Kind
    namespace: str
    name: str | None = None
    part: str | None = None

    @property
    def key(self) -> tuple[str, str, str, str]:
        """Where the store keeps it."""
        return self.kind.group, self.kind.plural, self.namespace, self.name or ""


def custom_kinds(definition: dict[str, Any]) -> list[Kind]:
    """The resources a CustomResourceDefinition serves."""
    spec = definition["spec"]
    return [
        Kind(
            spec["group"],
            version["name"],
            spec["names"]["plural"],
            spec["names"]["kind"],
            namespaced=spec["scope"] == "Namespaced",
            has_status="status" in (version.get("subresources") or {}),
            blind_update=False,
            schema=(version.get("schema") or {}).get("openAPIV3Schema") or {},
        )
        for version in spec["versions"]
        if version["served"]
    ]


def parse_path(path: str, kinds: list[Kind]) -> Target:
    """Read ``/api/v1/namespaces/ns/pods/name/log`` and its like; a path that names nothing is a 404."""
    words = path.strip("/").split("/")
    if words[0] == "api" and len(words) > 2:
        group, version, rest = "", words[1], words[2:]
    elif words[0] == "apis" and len(words) > 3:
        group, version, rest = words[1], words[2], words[3:]
    else:
        raise not_found_path()
    namespace = ""
    if rest[0] == "namespaces" and len(rest) > 2 and rest[2] != "status":
        namespace, rest = rest[1], rest[2:]
    for kind in kinds:
        if (kind.group, kind.version, kind.plural) == (group, version, rest[0]):
            return Target(kind, namespace, *rest[1:3])
    raise not_found_path()
