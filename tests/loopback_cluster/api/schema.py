"""Validation: what a real API server refuses in the objects we write.

The official client's models are generated from the API's own OpenAPI document: field names, types and which
are required are read off them. Custom resources are checked against the schema of their definition.
"""

from __future__ import annotations

import functools
import re
from typing import Any

from kubernetes import client  # noqa: TID253 - its models are the schema

from tests.loopback_cluster.api import custom, values
from tests.loopback_cluster.api.kinds import Kind
from tests.loopback_cluster.api.rules import RULES
from tests.loopback_cluster.api.status import ApiFailure, invalid

_LIST = re.compile(r"list\[(.+)\]")
# The client of Kubernetes 35 writes dict(str, str).
_MAP = re.compile(r"dict[\[(]str, (.+)[\])]")
_ENUMS = {
    "restart_policy": {"Always", "OnFailure", "Never"},
    "image_pull_policy": {"Always", "IfNotPresent", "Never"},
    "dns_policy": {"ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"},
    "medium": {"", "Memory", "HugePages"},
    "effect": {"NoSchedule", "PreferNoSchedule", "NoExecute"},
    "termination_message_policy": {"File", "FallbackToLogsOnError"},
    "protocol": {"TCP", "UDP", "SCTP"},
}
_SIMPLE: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "bool": (bool,),
    "float": (int, float),
    "datetime": (str,),
    "object": (object,),
}
_JSON_TYPES = {str: "string", int: "number", float: "number", bool: "bool", list: "array", dict: "object"}
_LABELS = {"V1ServiceSpec.selector"}
_MICRO_TIMES = {("V1LeaseSpec", "acquire_time"), ("V1LeaseSpec", "renew_time"), ("CoreV1Event", "event_time")}
_NAME_RULE = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.'"
_SERVICE_RULE = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-'"
_LABEL_RULE = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with one"
_MOST_ANNOTATIONS = 256 * 1024  # bytes, of all together


@functools.cache
def _checking() -> client.Configuration:
    configuration = client.Configuration()
    configuration.client_side_validation = True
    return configuration


def check(kind: Kind, new: dict[str, Any], *, strict: bool = True) -> None:
    """Raise the failure an API server answers for ``new``.

    :param strict: refuse unknown fields; else they are dropped.
    """
    meta = new.get("metadata") or {}
    name = meta.get("name") or ""
    checker = _Checker(kind.name, name, strict)
    if new.get("apiVersion") != kind.api_version or new.get("kind") != kind.name:
        found = f"{new.get('apiVersion')} {new.get('kind')}"
        raise ApiFailure(400, "BadRequest", f"{found} does not match {kind.api_version} {kind.name}")
    if kind.model:
        checker.by_model(new, kind.model, "")
    else:
        checker.by_model(meta, "V1ObjectMeta", "metadata")
        custom.check(kind, new, name, strict=strict)
    _check_metadata(kind, meta, checker)
    if rule := RULES.get(kind.plural if kind.model else ""):
        rule(new, checker.invalid)


def _check_metadata(kind: Kind, meta: dict[str, Any], checker: _Checker) -> None:
    name = checker.name
    if not name:
        raise checker.invalid("metadata.name: Required value: name or generateName is required")
    pattern = values.DNS_LABEL if kind.plural in {"services", "namespaces"} else None
    if not (pattern.fullmatch(name) if pattern and kind.model else values.is_name(name)):
        rule = _SERVICE_RULE if kind.plural == "services" else _NAME_RULE
        raise checker.invalid(f'metadata.name: Invalid value: "{name}": {rule}')
    checker.labels(meta.get("labels") or {}, "metadata.labels")
    annotations = meta.get("annotations") or {}
    for key in annotations:
        checker.label_key(key, "metadata.annotations")
    if sum(len(key) + len(value) for key, value in annotations.items()) > _MOST_ANNOTATIONS:
        raise checker.invalid("metadata.annotations: Too long: may not be more than 262144 bytes")
    owners = meta.get("ownerReferences") or ()
    for index, owner in enumerate(owners):
        for field in ("apiVersion", "kind", "name", "uid"):
            if not owner[field]:
                where = f"metadata.ownerReferences[{index}].{field}"
                raise checker.invalid(f'{where}: Invalid value: "": must not be empty')
    if sum(1 for owner in owners if owner.get("controller")) > 1:
        why = "Only one reference can have Controller set to true"
        raise checker.invalid(f"metadata.ownerReferences: Invalid value: {why}")


class _Checker:
    """Checks one object.

    :param kind: its kind, for what is said.
    :param name: its name, for what is said.
    """

    def __init__(self, kind: str, name: str, strict: bool) -> None:
        self.kind = kind
        self.name = name
        self._strict = strict

    def invalid(self, why: str) -> ApiFailure:
        """What to raise."""
        return invalid(self.kind, self.name, why)

    def by_model(self, value: Any, declared: str, path: str) -> None:
        """Check ``value`` against a type as the client's models write it."""
        if declared in _SIMPLE:
            fits = isinstance(value, _SIMPLE[declared]) and (declared == "bool") == isinstance(value, bool)
            if not fits and declared != "object":
                raise _wrong_type(path, value, declared)
        elif match := _LIST.fullmatch(declared):
            if not isinstance(value, list):
                raise _wrong_type(path, value, declared)
            for index, item in enumerate(value):
                self.by_model(item, match[1], f"{path}[{index}]")
        elif not isinstance(value, dict):
            raise _wrong_type(path, value, declared)
        elif match := _MAP.fullmatch(declared):
            for key, item in value.items():
                self.by_model(item, match[1], f"{path}.{key}")
        else:
            self._object(value, getattr(client, declared), path)

    def _object(self, value: dict[str, Any], model: Any, path: str) -> None:
        if model is client.V1OwnerReference:
            for field in ("apiVersion", "kind", "name", "uid"):
                value.setdefault(field, "")  # refused later, as empty
        fields = {json_name: field for field, json_name in model.attribute_map.items()}
        for key, item in list(value.items()):
            here = f"{path}.{key}".lstrip(".")
            if key not in fields and self._strict:
                raise ApiFailure(400, "BadRequest", f'strict decoding error: unknown field "{here}"')
            if key not in fields:
                del value[key]
            elif item is not None:
                self.by_model(item, model.openapi_types[fields[key]], here)
                self._value(model, fields[key], item, here)
        # Which fields are required stands in the models' setters only: they refuse None.
        blank = model.__new__(model)
        blank.local_vars_configuration = _checking()
        for field, json_name in model.attribute_map.items():
            if value.get(json_name) is None:
                try:
                    setattr(blank, field, None)
                except ValueError:
                    raise self.invalid(f"{path}.{json_name}: Required value".lstrip(".")) from None

    def _value(self, model: Any, field: str, value: Any, path: str) -> None:
        owner = model.__name__
        if field in _ENUMS and value not in _ENUMS[field]:
            raise self.invalid(f'{path}: Unsupported value: "{value}"')
        if field in {"labels", "match_labels", "node_selector"} or f"{owner}.{field}" in _LABELS:
            self.labels(value, path)
        amounts = value.values() if field in {"limits", "requests", "hard"} else ()
        for amount in [value] if field == "size_limit" else amounts:
            if not values.QUANTITY.fullmatch(amount):
                raise ApiFailure(400, "BadRequest", f"quantities must match the regular expression: {path}")
        if model.openapi_types[field] == "datetime":
            fault = values.time_fault(value, micro=(owner, field) in _MICRO_TIMES)
            if fault:
                said = f'{self.kind} in version "v1" cannot be handled as a {self.kind}: {fault}'
                raise ApiFailure(400, "BadRequest", said)

    def labels(self, labels: dict[str, str], path: str) -> None:
        """Keys and values that can be labels."""
        for key, value in labels.items():
            self.label_key(key, path)
            if not values.is_label_value(value):
                why = "must be no more than 63 bytes" if len(value) > 63 else _LABEL_RULE
                raise self.invalid(f'{path}: Invalid value: "{value}": {why}')

    def label_key(self, key: str, path: str) -> None:
        """A key, with or without a prefix."""
        if not values.is_label_key(key):
            raise self.invalid(f'{path}: Invalid value: "{key}": name part {_LABEL_RULE}')


def _wrong_type(path: str, value: Any, declared: str) -> ApiFailure:
    found = _JSON_TYPES.get(type(value), "null")
    what = f"json: cannot unmarshal {found} into Go struct field {path} of type {declared}"
    return ApiFailure(400, "BadRequest", what)
