"""Custom resources: their definitions, and objects against the structural schema of their definition."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from typing import Any

from tests.loopback_cluster.api.kinds import Kind
from tests.loopback_cluster.api.status import ApiFailure, invalid

_ALWAYS = {"apiVersion", "kind", "metadata"}
_TYPES: dict[str, Any] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
}
_FREE = "x-kubernetes-preserve-unknown-fields"
_EITHER = "x-kubernetes-int-or-string"


def check(kind: Kind, new: dict[str, Any], name: str, *, strict: bool) -> None:
    """Complete ``new`` by the schema's defaults, and hold it to the schema.

    :param strict: refuse unknown fields; else they are dropped.
    """
    _fill(new, kind.schema)
    _prune(new, kind.schema, "", strict=strict)
    for fault in _faults(new, kind.schema, ""):
        raise invalid(kind.name, name, fault)


def definition_fault(definition: dict[str, Any]) -> str | None:
    """Why a CustomResourceDefinition is refused."""
    spec = definition["spec"]
    wanted = f"{spec['names']['plural']}.{spec['group']}"
    if definition["metadata"]["name"] != wanted:
        return f'metadata.name: Invalid value: must be spec.names.plural+"."+spec.group: {wanted}'
    if sum(1 for version in spec["versions"] if version["storage"]) != 1:
        return "spec.versions: Invalid value: must have exactly one version marked as storage version"
    for version in spec["versions"]:
        schema = (version.get("schema") or {}).get("openAPIV3Schema")
        where = f"spec.versions[{version['name']}].schema.openAPIV3Schema"
        if schema is None:
            return f"{where}: Required value: schemas are required"
        if schema.get("type") != "object":
            return f"{where}.type: Invalid value: must be object at the root"
        if fault := next(_structure_faults(schema, where), None):
            return fault
    return None


def _structure_faults(schema: dict[str, Any], path: str) -> Iterator[str]:
    """A structural schema types every field it names, and an array's items."""
    if not schema.get("type") and not schema.get(_EITHER) and not schema.get(_FREE):
        yield f"{path}.type: Required value: must not be empty for specified object fields"
    if schema.get("properties") and schema.get("additionalProperties"):
        yield f"{path}.additionalProperties: Forbidden: mutual exclusive with properties"
    if schema.get("type") == "array" and "items" not in schema:
        yield f"{path}.items: Required value: must be specified"
    for name, inner in (schema.get("properties") or {}).items():
        yield from _structure_faults(inner, f"{path}.properties[{name}]")
    for name in ("items", "additionalProperties"):
        if isinstance(schema.get(name), dict):
            yield from _structure_faults(schema[name], f"{path}.{name}")


def _fill(value: Any, schema: dict[str, Any]) -> None:
    if isinstance(value, dict):
        for key, inner in (schema.get("properties") or {}).items():
            if "default" in inner and key not in value:
                value[key] = copy.deepcopy(inner["default"])
            _fill(value.get(key), inner)
    elif isinstance(value, list):
        for item in value:
            _fill(item, schema.get("items") or {})


def _prune(value: Any, schema: dict[str, Any], path: str, *, strict: bool) -> None:
    if isinstance(value, list):
        for index, item in enumerate(value):
            _prune(item, schema.get("items") or {}, f"{path}[{index}]", strict=strict)
    if not isinstance(value, dict):
        return
    known = schema.get("properties") or {}
    others: Any = schema.get("additionalProperties")
    for key in list(value):
        here = f"{path}.{key}".lstrip(".")
        if key in known or isinstance(others, dict):
            _prune(value[key], known.get(key, others), here, strict=strict)
        elif others or schema.get(_FREE) or (not path and key in _ALWAYS):
            continue
        elif strict:
            raise ApiFailure(400, "BadRequest", f'strict decoding error: unknown field "{here}"')
        else:
            del value[key]


def _faults(value: Any, schema: dict[str, Any], path: str) -> Iterator[str]:
    """What breaks the schema, one sentence each."""
    if value is None and schema.get("nullable"):
        return
    wanted = (int, str) if schema.get(_EITHER) else _TYPES.get(schema.get("type", ""))
    fits = wanted is None or isinstance(value, wanted)
    if not fits or (isinstance(value, bool) and wanted not in {None, bool}):
        said = f'in body must be of type {schema.get("type")}: "{type(value).__name__}"'
        yield f'{path}: Invalid value: "{value}": {path} {said}'
        return
    yield from (f"{path}: {fault}" for fault in _value_faults(value, schema))
    if isinstance(value, dict):
        for key in schema.get("required") or ():
            if key not in value:
                yield f"{path}.{key}: Required value".lstrip(".")
        known, others = schema.get("properties") or {}, schema.get("additionalProperties")
        for key, item in value.items():
            inner = known.get(key, others)
            if isinstance(inner, dict):
                yield from _faults(item, inner, f"{path}.{key}".lstrip("."))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _faults(item, schema.get("items") or {}, f"{path}[{index}]")


def _value_faults(value: Any, schema: dict[str, Any]) -> Iterator[str]:
    if schema.get("enum") and value not in schema["enum"]:
        yield f'Unsupported value: "{value}": supported values: {schema["enum"]}'
    if "pattern" in schema and not re.search(schema["pattern"], str(value)):
        yield f"Invalid value: \"{value}\": should match '{schema['pattern']}'"
    if "maximum" in schema and value > schema["maximum"]:
        yield f"Invalid value: {value}: should be less than or equal to {schema['maximum']}"
    if "minimum" in schema and value < schema["minimum"]:
        yield f"Invalid value: {value}: should be greater than or equal to {schema['minimum']}"
    for least, most in (("minLength", "maxLength"), ("minItems", "maxItems")):
        if (
            not schema.get(least, 0)
            <= len(value if least in schema or most in schema else "")
            <= schema.get(most, 2**31)
        ):
            yield f"Invalid value: length must be {schema.get(least, 0)} to {schema.get(most)}"
