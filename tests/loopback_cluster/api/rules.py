"""Rules between the fields of an object that no type states, by resource."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from typing import Any

from tests.loopback_cluster.api import custom, values
from tests.loopback_cluster.api.pod_rules import check_pod
from tests.loopback_cluster.api.status import ApiFailure

Object = dict[str, Any]
Refuse = Callable[[str], ApiFailure]
_MOST_DATA = 1 << 20  # bytes of a Secret or ConfigMap


def check_data(new: Object, refuse: Refuse) -> None:
    """Of Secrets and ConfigMaps."""
    size = 0
    for field in ("data", "stringData", "binaryData"):
        for key, text in (new.get(field) or {}).items():
            if not values.DATA_KEY.fullmatch(key):
                why = "a valid config key must consist of alphanumeric characters, '-', '_' or '.'"
                raise refuse(f'{field}[{key}]: Invalid value: "{key}": {why}')
            size += len(text)
            if field == "binaryData" or (field == "data" and new["kind"] == "Secret"):
                try:
                    base64.b64decode(text, validate=True)
                except (binascii.Error, ValueError):
                    said = f'{new["kind"]} in version "v1" cannot be handled as a {new["kind"]}: '
                    said += f"illegal base64 data at input byte 0 in {field}.{key}"
                    raise ApiFailure(400, "BadRequest", said) from None
    if size > _MOST_DATA:
        raise refuse("data: Too long: may not be more than 1048576 bytes")


def check_service(new: Object, refuse: Refuse) -> None:
    """Ports, and their names where there is more than one."""
    spec = new.get("spec") or {}
    ports = spec.get("ports") or []
    if not ports and spec.get("clusterIP") != "None" and spec.get("type") != "ExternalName":
        raise refuse("spec.ports: Required value")
    names = [port.get("name") for port in ports]
    for index, port in enumerate(ports):
        where = f"spec.ports[{index}]"
        if len(ports) > 1 and not port.get("name"):
            raise refuse(f"{where}.name: Required value")
        if port.get("name") and not values.DNS_LABEL.fullmatch(port["name"]):
            raise refuse(f'{where}.name: Invalid value: "{port["name"]}"')
        if port.get("name") and names.count(port["name"]) > 1:
            raise refuse(f'{where}.name: Duplicate value: "{port["name"]}"')
        target = port.get("targetPort", port["port"])
        for number in [port["port"], target]:
            if isinstance(number, int) and not 0 < number < 65536:
                raise refuse(f"{where}: Invalid value: {number}: must be between 1 and 65535, inclusive")
        if isinstance(target, str) and not values.PORT_NAME.fullmatch(target):
            raise refuse(f'{where}.targetPort: Invalid value: "{target}"')


def check_lease(new: Object, refuse: Refuse) -> None:
    """Its numbers."""
    spec = new.get("spec") or {}
    if spec.get("leaseDurationSeconds") is not None and spec["leaseDurationSeconds"] <= 0:
        number = spec["leaseDurationSeconds"]
        raise refuse(f"spec.leaseDurationSeconds: Invalid value: {number}: must be greater than 0")
    if (spec.get("leaseTransitions") or 0) < 0:
        raise refuse("spec.leaseTransitions: Invalid value: must be greater than or equal to 0")


def check_claim(new: Object, refuse: Refuse) -> None:
    """What a claim has to say."""
    spec = new.get("spec") or {}
    if not spec.get("accessModes"):
        raise refuse("spec.accessModes: Required value: at least 1 access mode is required")
    if not ((spec.get("resources") or {}).get("requests") or {}).get("storage"):
        raise refuse("spec.resources[storage]: Required value")


def check_event(new: Object, refuse: Refuse) -> None:
    """An event lives where its object does."""
    about = new["involvedObject"].get("namespace") or "default"
    if about != new["metadata"].get("namespace"):
        raise refuse(f'involvedObject.namespace: Invalid value: "{about}": does not match event.namespace')


def check_definition(new: Object, refuse: Refuse) -> None:
    """Of custom resources."""
    if fault := custom.definition_fault(new):
        raise refuse(fault)


RULES: dict[str, Callable[[Object, Refuse], None]] = {
    "pods": check_pod,
    "secrets": check_data,
    "configmaps": check_data,
    "services": check_service,
    "leases": check_lease,
    "persistentvolumeclaims": check_claim,
    "events": check_event,
    "customresourcedefinitions": check_definition,
}
"""Resource → what refuses it."""
