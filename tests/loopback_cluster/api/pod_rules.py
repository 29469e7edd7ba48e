"""Rules between the fields of a pod, in the order and the words of the API server's validation."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

from tests.loopback_cluster.api.status import ApiFailure, invalid
from tests.loopback_cluster.api.values import (
    DNS_LABEL,
    ENV_NAME,
    PORT_NAME,
    amount,
    is_name,
)

Object = dict[str, Any]
_HANDLERS = {"exec", "httpGet", "tcpSocket", "grpc"}
_PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
_SOURCES = {"fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef"}
_PLAIN_RESOURCES = {"cpu", "memory", "ephemeral-storage"}
_MAY_CHANGE = ("activeDeadlineSeconds", "tolerations", "terminationGracePeriodSeconds")


def check_pod(pod: Object, refuse: Callable[[str], ApiFailure]) -> None:
    """Raise for the first rule that is broken."""
    for fault in _faults(pod.get("spec") or {}):
        raise refuse(fault)


def require_pod_update(old: Object, new: Object) -> None:
    """Raise 422 where an update changes what may not change of a pod."""
    fixed = [copy.deepcopy(pod["spec"]) for pod in (old, new)]
    for spec in fixed:
        for field in _MAY_CHANGE:
            spec.pop(field, None)
        for container in [*spec["containers"], *(spec.get("initContainers") or ())]:
            container.pop("image", None)
    if fixed[0] != fixed[1]:
        why = "spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`, "
        why += "`spec.initContainers[*].image`, `spec.activeDeadlineSeconds`, `spec.tolerations`"
        raise invalid("Pod", new["metadata"]["name"], why)


def _faults(spec: Object) -> Iterator[str]:
    volumes = spec.get("volumes") or []
    for index, volume in enumerate(volumes):
        yield from _volume_faults(volume, f"spec.volumes[{index}]")
    yield from _twice([volume["name"] for volume in volumes], "spec.volumes", "name")
    if not spec.get("containers"):
        yield "spec.containers: Required value"
    everyone = []
    for kind in ("containers", "initContainers"):
        for index, container in enumerate(spec.get(kind) or ()):
            everyone.append(container["name"])
            where = f"spec.{kind}[{index}]"
            yield from _container_faults(container, where, {volume["name"] for volume in volumes})
    yield from _twice(everyone, "spec.containers", "name")
    deadline = spec.get("activeDeadlineSeconds")
    if deadline is not None and not 1 <= deadline <= 2**31 - 1:
        yield f"spec.activeDeadlineSeconds: Invalid value: {deadline}: must be between 1 and 2147483647"
    if (spec.get("terminationGracePeriodSeconds") or 0) < 0:
        yield "spec.terminationGracePeriodSeconds: Invalid value: must be greater than or equal to 0"
    for name in ("serviceAccountName", "priorityClassName", "nodeName"):
        if spec.get(name) and not is_name(spec[name]):
            yield f'spec.{name}: Invalid value: "{spec[name]}"'
    for index, toleration in enumerate(spec.get("tolerations") or ()):
        yield from _toleration_faults(toleration, f"spec.tolerations[{index}]")


def _container_faults(container: Object, where: str, volumes: set[str]) -> Iterator[str]:
    if not DNS_LABEL.fullmatch(container["name"]):
        yield f'{where}.name: Invalid value: "{container["name"]}": a lowercase RFC 1123 label is needed'
    if not container.get("image"):
        yield f"{where}.image: Required value"
    elif container["image"] != container["image"].strip():
        yield f"{where}.image: Invalid value: must not have leading or trailing whitespace"
    ports = container.get("ports") or []
    yield from _twice([port["name"] for port in ports if port.get("name")], f"{where}.ports", "name")
    for index, port in enumerate(ports):
        if port.get("name") and not PORT_NAME.fullmatch(port["name"]):
            rule = "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)"
            rule = "must be no more than 15 characters" if len(port["name"]) > 15 else rule
            yield f'{where}.ports[{index}].name: Invalid value: "{port["name"]}": {rule}'
        if not 0 < port["containerPort"] < 65536:
            yield f"{where}.ports[{index}].containerPort: Invalid value: must be between 1 and 65535"
    for index, variable in enumerate(container.get("env") or ()):
        yield from _variable_faults(variable, f"{where}.env[{index}]")
    yield from _mount_faults(container.get("volumeMounts") or [], f"{where}.volumeMounts", volumes)
    yield from _resource_faults(container.get("resources") or {}, f"{where}.resources")
    for probe in _PROBES:
        if container.get(probe):
            yield from _probe_faults(probe, container[probe], f"{where}.{probe}")


def _mount_faults(mounts: list[Object], where: str, volumes: set[str]) -> Iterator[str]:
    for index, mount in enumerate(mounts):
        if mount["name"] not in volumes:
            yield f'{where}[{index}].name: Not found: "{mount["name"]}"'
        if not mount["mountPath"]:
            yield f"{where}[{index}].mountPath: Required value"
        if str(mount.get("subPath") or "").startswith(("/", "../")):
            yield f"{where}[{index}].subPath: Invalid value: must be a relative path"
    yield from _twice([mount["mountPath"] for mount in mounts], where, "mountPath")


def _variable_faults(variable: Object, where: str) -> Iterator[str]:
    if not ENV_NAME.fullmatch(variable["name"]):
        rule = "a valid environment variable name must consist only of printable ASCII characters"
        yield f"{where}.name: Invalid value: \"{variable['name']}\": {rule} other than '='"
    source = variable.get("valueFrom")
    if source is not None:
        if variable.get("value"):
            yield f"{where}.valueFrom: Invalid value: may not be specified when `value` is not empty"
        if len(_SOURCES & {key for key, value in source.items() if value}) != 1:
            yield f"{where}.valueFrom: Invalid value: must specify exactly one source"


def _volume_faults(volume: Object, where: str) -> Iterator[str]:
    if not DNS_LABEL.fullmatch(volume["name"]):
        yield f'{where}.name: Invalid value: "{volume["name"]}": a lowercase RFC 1123 label is needed'
    sources = [key for key, value in volume.items() if key != "name" and value is not None]
    if len(sources) > 1:
        yield f"{where}: Forbidden: may not specify more than 1 volume type"
    if (volume.get("hostPath") or {}).get("path") == "":
        yield f"{where}.hostPath.path: Required value"
    if "secret" in sources and not volume["secret"].get("secretName"):
        yield f"{where}.secret.secretName: Required value"
    for index, source in enumerate((volume.get("projected") or {}).get("sources") or ()):
        if len([value for value in source.values() if value is not None]) > 1:
            yield f"{where}.projected.sources[{index}]: Forbidden: may not specify more than 1 volume type"


def _resource_faults(resources: Object, where: str) -> Iterator[str]:
    limits, requests = resources.get("limits") or {}, resources.get("requests") or {}
    for name, wanted in (limits | requests).items():
        if amount(wanted) < 0:
            yield f'{where}: Invalid value: "{wanted}": must be greater than or equal to 0'
        if "/" in name and amount(wanted) != int(amount(wanted)):
            yield f'{where}.{name}: Invalid value: "{wanted}": must be an integer'
        if "/" not in name and name not in _PLAIN_RESOURCES and not name.startswith("hugepages-"):
            yield f'{where}[{name}]: Invalid value: "{name}": must be a standard resource type'
    for name, wanted in requests.items():
        if "/" in name and name not in limits:
            yield f"{where}.limits: Required value: Limit must be set for non overcommitable resources"
        elif "/" in name and amount(limits[name]) != amount(wanted):
            said = f"must be equal to {name} limit of {limits[name]}"
            yield f'{where}.requests: Invalid value: "{wanted}": {said}'
        elif name in limits and amount(wanted) > amount(limits[name]):
            said = f"must be less than or equal to {name} limit of {limits[name]}"
            yield f'{where}.requests: Invalid value: "{wanted}": {said}'


def _probe_faults(kind: str, probe: Object, where: str) -> Iterator[str]:
    handlers = [key for key in _HANDLERS if probe.get(key)]
    if not handlers:
        yield f"{where}: Required value: must specify a handler type"
    if len(handlers) > 1:
        yield f"{where}.{handlers[1]}: Forbidden: may not specify more than 1 handler type"
    if kind != "readinessProbe" and probe.get("successThreshold") not in (None, 0, 1):
        yield f"{where}.successThreshold: Invalid value: {probe['successThreshold']}: must be 1"
    for field in ("initialDelaySeconds", "timeoutSeconds", "periodSeconds", "failureThreshold"):
        if (probe.get(field) or 0) < 0:
            yield f"{where}.{field}: Invalid value: {probe[field]}: must be greater than or equal to 0"


def _toleration_faults(toleration: Object, where: str) -> Iterator[str]:
    operator = toleration.get("operator") or "Equal"
    if operator not in {"Equal", "Exists"}:
        yield f'{where}.operator: Unsupported value: "{operator}": supported values: "Equal", "Exists"'
    if operator == "Exists" and toleration.get("value"):
        yield f"{where}.operator: Invalid value: value must be empty when `operator` is 'Exists'"
    if not toleration.get("key") and operator != "Exists":
        yield f"{where}.operator: Invalid value: operator must be Exists when `key` is empty"
    if toleration.get("tolerationSeconds") is not None and toleration.get("effect") != "NoExecute":
        yield f"{where}.effect: Invalid value: effect must be 'NoExecute' when `tolerationSeconds` is set"


def _twice(names: list[str], where: str, field: str) -> Iterator[str]:
    for index, name in enumerate(names):
        if name in names[:index]:
            yield f'{where}[{index}].{field}: Duplicate value: "{name}"'
