"""Pod Security admission: the ``restricted`` and ``baseline`` levels a namespace's label asks for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.loopback_cluster.api.status import ApiFailure

Object = dict[str, Any]
_LABEL = "pod-security.kubernetes.io/enforce"
_VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
    "image",
}


def require(namespace: Object, pod: Object) -> None:
    """Raise 403, in the admission plugin's words, for what the namespace's level does not allow."""
    level = (namespace["metadata"].get("labels") or {}).get(_LABEL, "privileged")
    if level == "privileged":
        return
    faults = list(_baseline(pod["spec"]))
    if level == "restricted":
        faults += _restricted(pod["spec"])
    if faults:
        name = pod["metadata"]["name"]
        why = f'pods "{name}" is forbidden: violates PodSecurity "{level}:latest": {", ".join(faults)}'
        raise ApiFailure(403, "Forbidden", why)


def _containers(spec: Object) -> list[Object]:
    return [*(spec.get("initContainers") or ()), *spec["containers"]]


def _baseline(spec: Object) -> Iterator[str]:
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(field):
            yield f"host namespaces ({field}=true)"
    for volume in spec.get("volumes") or ():
        if volume.get("hostPath"):
            yield f'hostPath volumes (volume "{volume["name"]}")'
    for container in _containers(spec):
        if (container.get("securityContext") or {}).get("privileged"):
            yield f'privileged (container "{container["name"]}" must not set securityContext.privileged=true)'


def _restricted(spec: Object) -> Iterator[str]:
    whole = spec.get("securityContext") or {}
    for volume in spec.get("volumes") or ():
        kinds = set(volume) - {"name"}
        if kinds and not kinds & _VOLUMES:
            yield f'restricted volume types (volume "{volume["name"]}" uses {sorted(kinds)[0]})'
    for container in _containers(spec):
        own = container.get("securityContext") or {}
        who = f'container "{container["name"]}" must set'
        if own.get("allowPrivilegeEscalation") is not False:
            yield f"allowPrivilegeEscalation != false ({who} securityContext.allowPrivilegeEscalation=false)"
        capabilities = own.get("capabilities") or {}
        if "ALL" not in (capabilities.get("drop") or ()):
            yield f'unrestricted capabilities ({who} securityContext.capabilities.drop=["ALL"])'
        if own.get("runAsNonRoot", whole.get("runAsNonRoot")) is not True:
            yield f"runAsNonRoot != true (pod or {who} securityContext.runAsNonRoot=true)"
        if own.get("runAsUser", whole.get("runAsUser")) == 0:
            yield f"runAsUser=0 (pod or {who} securityContext.runAsUser to a non-zero value)"
        profile = own.get("seccompProfile") or whole.get("seccompProfile") or {}
        if profile.get("type") not in {"RuntimeDefault", "Localhost"}:
            yield f'seccompProfile (pod or {who} securityContext.seccompProfile.type to "RuntimeDefault")'
