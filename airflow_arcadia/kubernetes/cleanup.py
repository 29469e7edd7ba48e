"""End everything a lease owns in the cluster, and wait until it is gone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from airflow_arcadia.kubernetes.api import Session
from airflow_arcadia.kubernetes.errors import KubernetesForbiddenError, KubernetesInvalidError
from airflow_arcadia.kubernetes.kinds import (
    LEASE,
    POD,
    RAY_CLUSTER,
    SECRET,
    SERVICE,
    WORKER,
    Kind,
    labels_of_lease,
    selector,
)

ALWAYS = (POD, SERVICE, SECRET)
SOMETIMES = (RAY_CLUSTER, WORKER)
"""Custom resources: a cluster may not know them, and Airflow may not be allowed to look."""
COLLECTION_S = 60.0
"""What the cluster's garbage collection may take beyond the pods' grace; measured up to 20 s."""
_POLL_S = 0.2


async def collect(
    session: Session, lease: str, *, grace_s: float, budget_s: float | None = None, keep_lease: bool = False
) -> list[str]:
    """Delete the Lease and all that carries its label; returns what is still there, as text.

    Right when called twice, when the launch never happened, and while another call does the same.

    :param grace_s: seconds a pod may take to end before the kubelet kills it.
    :param budget_s: seconds to wait beyond that; None waits as long as a collection may take.
    :param keep_lease: leave the Lease itself: it still says what a later call has to end.
    """
    # The Lease first: whatever is still made meanwhile has an owner that is gone, and is collected.
    if not keep_lease:
        await session.delete(LEASE, lease)
    labels = selector(labels_of_lease(lease))
    kinds = [*ALWAYS, *[kind for kind in SOMETIMES if await _readable(session, kind, labels)]]
    for kind in reversed(kinds):
        for item in await session.find(kind, labels):
            metadata = item["metadata"]
            if not metadata.get("deletionTimestamp"):
                grace = grace_s if kind is POD else None
                await session.delete(kind, metadata["name"], uid=metadata["uid"], grace_s=grace)
    deadline = time.monotonic() + grace_s + (COLLECTION_S if budget_s is None else budget_s)
    while True:
        left = await _left(session, kinds if keep_lease else [LEASE, *kinds], labels)
        if not left or time.monotonic() > deadline:
            return left
        await asyncio.sleep(_POLL_S)


async def _left(session: Session, kinds: Sequence[Kind], labels: str) -> list[str]:
    found = []
    for kind in kinds:
        for item in await session.find(kind, labels):
            ending = " (being deleted)" if item["metadata"].get("deletionTimestamp") else ""
            found.append(f"{kind.kind} {session.namespace}/{item['metadata']['name']}{ending}")
    return found


async def _readable(session: Session, kind: Kind, labels: str) -> bool:
    """Whether there can be any: a kind that is not installed, or not allowed to us, was not made by us."""
    try:
        await session.find(kind, labels)
    except (KubernetesInvalidError, KubernetesForbiddenError):
        return False
    return True
