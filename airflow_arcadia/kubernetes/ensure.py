"""Create objects idempotently: a retry, or a request whose answer was lost, finds what was created before."""

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
    """An object of that name belongs to something else."""

    retryable = False


async def make(session: Session, kind: Kind, body: Mapping[str, Any], lease: Lease) -> Object:
    """The object as it is in the cluster: created now, or by an earlier attempt under the same lease.

    One that ended, is being deleted, or was created under a lease that is gone is replaced. Raises
    :class:`NameTakenError` for one that belongs to something else, and what the API server refuses it for.
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
                f"{kind.kind} {name} from an earlier attempt is still terminating.",
                still_running=f"It has been terminating for more than {GONE_WAIT_S:.0f} s.",
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
        f"lease {labels[LEASE_LABEL]}" if LEASE_LABEL in labels else labels.get(MANAGED_BY, "something else")
    )
    return NameTakenError(
        f"{kind.kind} {found['metadata']['name']} already exists and belongs to {whose}.",
        what_to_do="Give the group another name or the worker another namespace, or delete that object.",
    )
