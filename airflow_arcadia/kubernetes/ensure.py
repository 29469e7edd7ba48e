"""Make an object once, however often it is asked for: by a retry, or by a request whose answer was lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from airflow_arcadia.kubernetes.api import Session
from airflow_arcadia.kubernetes.errors import KubernetesConflictError, KubernetesError
from airflow_arcadia.kubernetes.kinds import LEASE_LABEL, MANAGED_BY, POD, Kind, Object, owned_by
from airflow_arcadia.lease import Lease

GONE_WAIT_S = 90.0
"""What an earlier object of the name may take to go: a pod's grace, and the collection."""
_POLL_S = 0.2


class NameTakenError(KubernetesError):
    """An object of that name belongs to somebody else."""

    retryable = False


async def make(session: Session, kind: Kind, body: Mapping[str, Any], lease: Lease) -> Object:
    """The object as it is in the cluster: made now, or by an earlier try under the same lease.

    One that ended, is being deleted, or was made under a lease that is gone makes room first. Raises
    :class:`NameTakenError` for one that is somebody else's, and what the API server says against it.
    """
    name = body["metadata"]["name"]
    deadline = time.monotonic() + GONE_WAIT_S
    while True:
        try:
            return await session.create(kind, body)
        except KubernetesConflictError:
            found = await session.get(kind, name)
        if found is None:
            continue  # it went between the two
        if found["metadata"].get("labels", {}).get(LEASE_LABEL) != lease.name:
            raise _taken(kind, found)
        if owned_by(found, lease.uid) and not _is_over(kind, found):
            return found
        if not found["metadata"].get("deletionTimestamp"):
            await session.delete(kind, name, uid=found["metadata"]["uid"])
        if time.monotonic() > deadline:
            raise KubernetesError(
                f"{kind.kind} {name} of an earlier try does not go.",
                still_running=f"It is still there, being deleted since {GONE_WAIT_S:.0f} s.",
                what_to_do="See its finalizers and its node, then clear the task.",
            )
        await asyncio.sleep(_POLL_S)


def _is_over(kind: Kind, found: Object) -> bool:
    if found["metadata"].get("deletionTimestamp"):
        return True
    return kind is POD and (found.get("status") or {}).get("phase") in {"Succeeded", "Failed"}


def _taken(kind: Kind, found: Object) -> NameTakenError:
    labels = found["metadata"].get("labels") or {}
    whose = (
        f"lease {labels[LEASE_LABEL]}" if LEASE_LABEL in labels else labels.get(MANAGED_BY, "somebody else")
    )
    return NameTakenError(
        f"{kind.kind} {found['metadata']['name']} is there already and belongs to {whose}.",
        what_to_do="Give the group another name or the worker another namespace, or delete that object.",
    )
