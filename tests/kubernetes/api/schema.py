"""Strict validation: what a real API server refuses in the objects we write.

The official client's models are generated from the API's own OpenAPI document: field names, types and which
are required are read off them. Custom resources are checked against the schema of their definition.
"""

from __future__ import annotations

import functools
import re
from typing import Any

from kubernetes import client  # noqa: TID253 - its models are the schema

from tests.kubernetes.api.kinds import Kind
from tests.kubernetes.api.status import ApiFailure, invalid

_LIST = re.compile(r"list\[(.+)\]")
_MAP = re.compile(r"dict\[str, (.+)\]")
_QUANTITY = re.compile(r"[+-]?[0-9.]+([eE][+-]?[0-9]+|[numkMGTPE]|[KMGTPE]i)?")
_LABEL_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_DNS_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_ENUMS = {
    "restart_policy": {"Always", "OnFailure", "Never"},
    "image_pull_policy": {"Always", "IfNotPresent", "Never"},
    "dns_policy": {"ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"},
    "medium": {"", "Memory", "HugePages"},
    "effect": {"NoSchedule", "PreferNoSchedule", "NoExecute"},
}
_SIMPLE: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "bool": (bool,),
    "float": (int, float),
    "datetime": (str,),
    "object": (object,),
}

_ALWAYS = {"apiVersion", "kind", "metadata"}
_TYPES: dict[str, Any] = {"object": dict, "array": list, "string": str, "integer": int, "boolean": bool}


@functools.cache
def _checking() -> client.Configuration:
    configuration = client.Configuration()
    configuration.client_side_validation = True
    return configuration


def check(kind: Kind, new: dict[str, Any]) -> None:
    """Raise the failure a strict API server answers for ``new``."""
    meta = new.get("metadata") or {}
    checker = _Checker(kind.name, meta.get("name", ""))
    if new.get("apiVersion") != kind.api_version or new.get("kind") != kind.name:
        found = f"{new.get('apiVersion')} {new.get('kind')}"
        raise ApiFailure(400, "BadRequest", f"{found} does not match {kind.api_version} {kind.name}")
    pattern = _DNS_LABEL if kind.plural in {"services", "namespaces"} else _DNS_NAME
    if not pattern.fullmatch(checker.name):
        raise checker.invalid(f'metadata.name: Invalid value: "{checker.name}"')
    if kind.model:
        checker.by_model(new, kind.model, "")
    else:
        checker.by_model(meta, "V1ObjectMeta", "metadata")
        checker.by_schema(new, kind.schema, "")
    checker.labels(meta.get("labels") or {}, "metadata.labels")
    for key in meta.get("annotations") or {}:
        checker.label_key(key, "metadata.annotations")


class _Checker:
    """Checks one object.

    :param kind: its kind, for what is said.
    :param name: its name, for what is said.
    """

    def __init__(self, kind: str, name: str) -> None:
        self.kind = kind
        self.name = name

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
        fields = {json_name: field for field, json_name in model.attribute_map.items()}
        for key, item in value.items():
            here = f"{path}.{key}".lstrip(".")
            if key not in fields:
                raise ApiFailure(400, "BadRequest", f'strict decoding error: unknown field "{here}"')
            if item is not None:
                self.by_model(item, model.openapi_types[fields[key]], here)
                self._value(model.__name__, fields[key], item, here)
        # Which fields are required stands in the models' setters only: they refuse None.
        blank = model.__new__(model)
        blank.local_vars_configuration = _checking()
        for field, json_name in model.attribute_map.items():
            if value.get(json_name) is None:
                try:
                    setattr(blank, field, None)
                except ValueError:
                    raise self.invalid(f"{path}.{json_name}: Required value".lstrip(".")) from None

    def _value(self, owner: str, field: str, value: Any, path: str) -> None:
        if field in _ENUMS and value not in _ENUMS[field]:
            raise self.invalid(f'{path}: Unsupported value: "{value}"')
        if field in {"labels", "match_labels"}:
            self.labels(value, path)
        amounts = value.values() if field in {"limits", "requests", "hard"} else ()
        for amount in [value] if field == "size_limit" else amounts:
            if not _QUANTITY.fullmatch(amount):
                raise self.invalid(f'{path}: Invalid value: "{amount}"')
        if field == "name" and owner in {"V1Container", "V1Volume"} and not _DNS_LABEL.fullmatch(value):
            raise self.invalid(f'{path}: Invalid value: "{value}"')
        if field == "name" and owner in {"V1ContainerPort", "V1ServicePort"} and len(value) > 15:
            raise self.invalid(f"{path}: must be no more than 15 characters")
        if field == "container_port" and not 0 < value < 65536:
            raise self.invalid(f"{path}: must be between 1 and 65535, inclusive")
        if field == "volume_mounts" and len({mount["mountPath"] for mount in value}) < len(value):
            raise self.invalid(f"{path}: must be unique")

    def by_schema(self, value: Any, schema: dict[str, Any], path: str) -> None:
        """The parts of OpenAPI v3 that structural schemas use; ``$model`` stands for one of the API's own."""
        wanted = _TYPES.get(schema.get("type", ""))
        if schema.get("x-kubernetes-int-or-string"):
            wanted = (int, str)
        if wanted and not isinstance(value, wanted):
            raise self.invalid(f"{path}: Invalid value: {value!r}: must be of type {schema['type']}")
        if schema.get("enum") and value not in schema["enum"]:
            raise self.invalid(f'{path}: Unsupported value: "{value}"')
        if "$model" in schema:
            self.by_model(value, schema["$model"], path)
        elif isinstance(value, dict):
            self._custom_object(value, schema, path)
        elif isinstance(value, list):
            for index, item in enumerate(value):
                self.by_schema(item, schema.get("items") or {}, f"{path}[{index}]")

    def _custom_object(self, value: dict[str, Any], schema: dict[str, Any], path: str) -> None:
        known = schema.get("properties") or {}
        free = not schema or schema.get("x-kubernetes-preserve-unknown-fields")
        for key in schema.get("required") or ():
            if key not in value:
                raise self.invalid(f"{path}.{key}: Required value".lstrip("."))
        for key, item in value.items():
            here = f"{path}.{key}".lstrip(".")
            inner = known.get(key, schema.get("additionalProperties"))
            if inner is not None:
                self.by_schema(item, inner, here)
            elif not free and (path or key not in _ALWAYS):
                raise ApiFailure(400, "BadRequest", f'strict decoding error: unknown field "{here}"')

    def labels(self, labels: dict[str, str], path: str) -> None:
        """Keys and values that can be labels."""
        for key, value in labels.items():
            self.label_key(key, path)
            if value and not _LABEL_NAME.fullmatch(value):
                raise self.invalid(f'{path}: Invalid value: "{value}": a valid label is 63 or less')

    def label_key(self, key: str, path: str) -> None:
        """A key, with or without a prefix."""
        prefix, slash, last = key.rpartition("/")
        if not _LABEL_NAME.fullmatch(last) or (slash and not _DNS_NAME.fullmatch(prefix)):
            raise self.invalid(f'{path}: Invalid value: "{key}"')


def _wrong_type(path: str, value: Any, declared: str) -> ApiFailure:
    found = type(value).__name__
    what = f"json: cannot unmarshal {found} into field {path} of type {declared}"
    return ApiFailure(400, "BadRequest", what)
