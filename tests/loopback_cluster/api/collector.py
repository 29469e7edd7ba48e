"""The garbage collector: what goes with its owners or its namespace, some time after them."""

from __future__ import annotations

import asyncio
import copy
from typing import Any

from tests.loopback_cluster.api.store import FOREGROUND, Key, Object, Store, now

DELAY_S = 0.2  # a real one takes 0.4 to 20 s


async def run(store: Store) -> None:
    """Collect until cancelled."""
    while True:
        changed = store.changed
        await asyncio.sleep(DELAY_S)
        collect(store)
        empty_namespaces(store)
        await changed.wait()


def terminate(store: Store, key: Key) -> Object:
    """Mark a namespace for deletion: it goes once nothing is left in it."""
    found = copy.deepcopy(store.find(key))
    found["metadata"].setdefault("deletionTimestamp", now())
    found["status"] = {"phase": "Terminating"}
    store.put(key, "MODIFIED", found)
    return found


def empty_namespaces(store: Store) -> None:
    """Delete what is in namespaces that are being deleted, and those that are empty."""
    for key, space in list(store.objects.items()):
        if key[:2] != ("", "namespaces") or not space["metadata"].get("deletionTimestamp"):
            continue
        inside = {other: found for other, found in store.objects.items() if other[2] == key[3]}
        for other, found in inside.items():
            if other in store.objects and not found["metadata"].get("deletionTimestamp"):
                store.delete(other, {})
        if not inside:
            store.remove(key)


def collect(store: Store) -> None:
    """Delete what has no owner left, and what waits for its dependents and has none left."""
    for key, found in list(store.objects.items()):
        meta = found["metadata"]
        owners = meta.get("ownerReferences") or []
        if key not in store.objects or meta.get("deletionTimestamp"):
            continue
        if owners and not any(_holds(store, key, owner) for owner in owners):
            store.delete(key, {})
    for key, found in list(store.objects.items()):
        meta = found["metadata"]
        if FOREGROUND not in (meta.get("finalizers") or ()):
            continue
        blocked = any(
            reference.get("blockOwnerDeletion") for _, _, reference in store.dependents(meta["uid"])
        )
        if not blocked:
            freed = copy.deepcopy(found)
            freed["metadata"]["finalizers"].remove(FOREGROUND)
            store.put(key, "MODIFIED", freed)
            if not freed["metadata"]["finalizers"]:
                store.remove(key)


def _holds(store: Store, key: Key, owner: dict[str, Any]) -> bool:
    """Whether the owner keeps the object: it is there, under that kind and name, and not going itself."""
    group = owner["apiVersion"].rpartition("/")[0]
    for other, found in store.objects.items():
        if found["metadata"]["uid"] == owner["uid"]:
            same = (other[0], other[3], found["kind"]) == (group, owner["name"], owner["kind"])
            goes_first = FOREGROUND in (found["metadata"].get("finalizers") or ())
            return same and other[2] in {"", key[2]} and not goes_first
    return False
