"""Merge patches: the plain one (RFC 7386) and Kubernetes' strategic one, which merges lists by a key."""

from __future__ import annotations

from typing import Any

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
        merged_list = [dict(item) for item in (target or [])]
        for item in patch:
            at = next((i for i, old in enumerate(merged_list) if old.get(key) == item.get(key)), None)
            if at is None:
                merged_list.append(item)
            else:
                merged_list[at] = strategic_merge(merged_list[at], item)
        return merged_list
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = strategic_merge(merged.get(key), value, key)
    return merged
