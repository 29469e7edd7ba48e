"""Objects, their versions, and what watches are told."""

from __future__ import annotations

import asyncio
import copy
import datetime
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tests.loopback_cluster.api.status import ApiFailure, conflict, expired, not_found

Key = tuple[str, str, str, str]
Object = dict[str, Any]
KEPT_CHANGES = 2000  # how far back a watch may start; older ones get 410
FOREGROUND = "foregroundDeletion"  # the finalizer of what goes after all it owns


def now() -> str:
    """The API's time format."""
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True)
class Change:
    """One line of the history: what a watch is told, and the object as it was before."""

    version: int
    key: Key
    type: str
    object: Object
    before: Object | None


class Store:
    """All objects by key (group, plural, namespace, name), with a history for watches."""

    def __init__(self) -> None:
        self.version = 100
        self.objects: dict[Key, Object] = {}
        self.history: list[Change] = []
        self.oldest = 100
        self.changed = asyncio.Event()

    def find(self, key: Key) -> Object:
        """The object; 404 when there is none."""
        if key not in self.objects:
            raise not_found(key[1], key[3])
        return self.objects[key]

    def add(self, key: Key, new: Object) -> Object:
        """Create; 409 when the name is taken."""
        if key in self.objects:
            raise ApiFailure(409, "AlreadyExists", f'{key[1]} "{key[3]}" already exists')
        meta = new["metadata"]
        meta |= {"uid": str(uuid.uuid4()), "creationTimestamp": now(), "generation": 1}
        self.put(key, "ADDED", new)
        return new

    def change(self, key: Key, new: Object) -> Object:
        """Replace; 409 when ``new`` states another resourceVersion or uid than the one there."""
        old = self.find(key)
        meta, was = new["metadata"], old["metadata"]
        if meta.get("resourceVersion") not in (None, "", was["resourceVersion"]):
            why = (
                "the object has been modified; please apply your changes to the latest version and try again"
            )
            raise conflict(key[1], key[3], why)
        if meta.get("uid") not in (None, was["uid"]):
            why = f"Precondition failed: UID in precondition: {meta['uid']}, UID in object meta: {was['uid']}"
            raise conflict(key[1], key[3], why)
        for kept in ("uid", "creationTimestamp", "name", "namespace", "deletionTimestamp"):
            if kept in was:
                meta[kept] = was[kept]
        changed = new.get("spec") != old.get("spec")
        meta["generation"] = was["generation"] + 1 if changed else was["generation"]
        meta["resourceVersion"] = was["resourceVersion"]
        if new == old:
            return old
        self.put(key, "MODIFIED", new)
        if meta.get("deletionTimestamp") and not meta.get("finalizers") and was.get("finalizers"):
            self.remove(key)
        return new

    def delete(self, key: Key, options: Object) -> Object:
        """Delete as asked: with a grace period where a kubelet has to act first, else at once."""
        found = copy.deepcopy(self.find(key))
        meta, wanted = found["metadata"], options.get("preconditions") or {}
        for field in ("uid", "resourceVersion"):
            if wanted.get(field) not in (None, meta[field]):
                raise conflict(key[1], key[3], f"the {field} in the precondition does not match")
        policy = options.get("propagationPolicy") or "Background"
        if policy == "Orphan":
            self._orphan(meta["uid"])
        elif policy == "Foreground" and any(True for _ in self.dependents(meta["uid"])):
            meta["finalizers"] = [*(meta.get("finalizers") or ()), FOREGROUND]
        if runs_on_node(key, found) and self._grace_starts(key, found, options):
            return found
        if meta.get("finalizers"):
            if not meta.get("deletionTimestamp"):
                meta["deletionTimestamp"] = now()
                self.put(key, "MODIFIED", found)
            return found
        return self.remove(key)

    def _grace_starts(self, key: Key, found: Object, options: Object) -> bool:
        """Whether a kubelet is waited for; False where the pod is to go at once."""
        meta, grace = found["metadata"], options.get("gracePeriodSeconds")
        seconds = found["spec"].get("terminationGracePeriodSeconds", 30) if grace is None else grace
        if seconds <= 0:
            return False
        known = meta.get("deletionGracePeriodSeconds")
        if known is None or seconds < known:
            ends = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=seconds)
            meta["deletionTimestamp"] = ends.strftime("%Y-%m-%dT%H:%M:%SZ")
            meta["deletionGracePeriodSeconds"] = seconds
            self.put(key, "MODIFIED", found)
        return True

    def remove(self, key: Key) -> Object:
        """Take it out."""
        gone = copy.deepcopy(self.find(key))
        gone["metadata"].setdefault("deletionTimestamp", now())
        self.put(key, "DELETED", gone)
        return gone

    def dependents(self, uid: str) -> Iterator[tuple[Key, Object, Object]]:
        """What states this owner: key, object, and the reference."""
        for key, found in list(self.objects.items()):
            for reference in found["metadata"].get("ownerReferences") or ():
                if reference["uid"] == uid:
                    yield key, found, reference

    def _orphan(self, uid: str) -> None:
        for key, found, reference in self.dependents(uid):
            freed = copy.deepcopy(found)
            freed["metadata"]["ownerReferences"].remove(reference)
            self.put(key, "MODIFIED", freed)

    async def changes(
        self, since: int, matches: Callable[[Key, Object], bool], stopped: Callable[[], bool]
    ) -> Any:
        """What a watch is told, for ever; raises 410 where ``since`` is too long ago."""
        if since < self.oldest:
            raise expired(since, self.oldest)
        while not stopped():
            changed = self.changed
            for change in self._after(since):
                since = change.version
                if told := _as_watched(change, matches):
                    yield told, change.object
            if changed is self.changed:
                await changed.wait()

    def forget_history(self) -> None:
        """As a restarted API server: watches from before must list again."""
        self.history.clear()
        # A version of its own: whoever listed before the restart is too old.
        self.version += 1
        self.oldest = self.version

    def wake(self) -> None:
        """Let every watch look whether it shall end."""
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()

    def _after(self, since: int) -> Iterator[Change]:
        return iter([change for change in self.history if change.version > since])

    def put(self, key: Key, kind: str, new: Object) -> None:
        """Write one change down, and tell it."""
        self.version += 1
        new["metadata"]["resourceVersion"] = str(self.version)
        before = self.objects.pop(key, None) if kind == "DELETED" else self.objects.get(key)
        if kind != "DELETED":
            self.objects[key] = new
        self.history.append(Change(self.version, key, kind, copy.deepcopy(new), copy.deepcopy(before)))
        if len(self.history) > KEPT_CHANGES:
            self.oldest = self.history.pop(0).version
        self.wake()


def runs_on_node(key: Key, found: Object) -> bool:
    """Whether a kubelet has to end it before it can go."""
    ended = (found.get("status") or {}).get("phase") in ("Succeeded", "Failed")
    return key[:2] == ("", "pods") and bool(found["spec"].get("nodeName")) and not ended


def _as_watched(change: Change, matches: Callable[[Key, Object], bool]) -> str | None:
    """The event's type for a watch with a selector: an object may enter or leave it by a change."""
    fits = matches(change.key, change.object)
    fitted = change.before is not None and matches(change.key, change.before)
    if change.type == "DELETED" or (fitted and not fits):
        return "DELETED" if fits or fitted else None
    if not fits:
        return None
    return "MODIFIED" if fitted else "ADDED"
