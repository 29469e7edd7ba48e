"""Patches: JSON (RFC 6902), merge (RFC 7386) and Kubernetes' strategic one, which merges lists by a key."""

from __future__ import annotations

import copy
from typing import Any

from tests.loopback_cluster.api.status import ApiFailure

_MERGE_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "volumes": "name",
    "env": "name",
    "conditions": "type",
    "volumeMounts": "mountPath",
    "ownerReferences": "uid",
    "addresses": "type",
}


def merge(target: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge(merged.get(key), value)
    return merged


def strategic_merge(target: Any, patch: Any, field: str | None = None) -> Any:
    """As :func:`merge`, but the lists that Kubernetes merges by a key are merged by it."""
    if isinstance(patch, list):
        key = _MERGE_KEYS.get(field or "")
        if key is None or not all(isinstance(item, dict) for item in patch):
            return patch
        return _merge_list(target or [], patch, key)
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = strategic_merge(merged.get(key), value, key)
    return merged


def _merge_list(target: list[Any], patch: list[Any], key: str) -> list[Any]:
    merged = [dict(item) for item in target]
    for item in patch:
        at = next((i for i, old in enumerate(merged) if old.get(key) == item.get(key)), None)
        if item.get("$patch") == "delete":
            merged = [old for old in merged if old.get(key) != item.get(key)]
        elif at is None:
            merged.append(strategic_merge({}, item))
        else:
            merged[at] = strategic_merge(merged[at], item)
    return merged


def json_patch(target: Any, operations: list[dict[str, Any]]) -> Any:
    """RFC 6902, as far as ``add``, ``remove``, ``replace`` and ``test`` go."""
    document = copy.deepcopy(target)
    for operation in operations:
        *way, last = [word.replace("~1", "/").replace("~0", "~") for word in operation["path"].split("/")[1:]]
        here = document
        try:
            for word in way:
                here = here[int(word)] if isinstance(here, list) else here[word]
            _apply(here, last, operation)
        except (KeyError, IndexError, ValueError) as error:
            why = f"the server rejected our request due to an error in our request: {operation}: {error!r}"
            raise ApiFailure(422, "Invalid", why) from error
    return document


def _apply(here: Any, last: str, operation: dict[str, Any]) -> None:
    verb = operation["op"]
    where: Any = last
    if isinstance(here, list):
        where = len(here) if last == "-" else int(last)
    if verb == "add" and isinstance(here, list):
        here.insert(where, operation["value"])
    elif verb == "add":
        here[where] = operation["value"]
    elif verb == "remove":
        del here[where]
    elif verb == "replace":
        _ = here[where]  # what is not there cannot be replaced
        here[where] = operation["value"]
    elif verb == "test":
        if here[where] != operation["value"]:
            raise ValueError("testing value failed")
    else:
        raise ValueError(f"operation {verb} is not known here")
