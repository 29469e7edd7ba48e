"""End everything a lease owns in the cluster, and wait until it is gone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Sequence
from typing import TypeVar

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

T = TypeVar("T")

ALWAYS = (POD, SERVICE, SECRET)
SOMETIMES = (RAY_CLUSTER, WORKER)
"""Custom resources: a cluster may not know them, and Airflow may not be allowed to look."""
COLLECTION_S = 60.0
"""What the cluster's garbage collection may take beyond the pods' grace; measured up to 20 s."""
_POLL_S = 0.2


async def collect(
    session: Session, lease: str, *, grace_s: float, budget_s: float | None = None, keep_lease: bool = False
) -> list[str]:
    """Delete the Lease and all that carries its label; returns what is still there, as text. Idempotent.

    A right that is missing keeps nothing else from being deleted: it is raised, as a
    :class:`KubernetesForbiddenError`, once everything is gone that may be deleted.

    :param grace_s: seconds a pod may take to end before the kubelet kills it.
    :param budget_s: seconds to wait beyond that; None waits as long as a collection may take.
    :param keep_lease: leave the Lease itself: it still says what a later call has to end.
    """
    denied: list[KubernetesForbiddenError] = []
    # The Lease first: whatever is still made meanwhile has an owner that is gone, and is collected.
    if not keep_lease:
        await _unless_denied(session.delete(LEASE, lease), denied)
    labels = selector(labels_of_lease(lease))
    optional = await asyncio.gather(*(readable(session, kind, labels) for kind in SOMETIMES))
    kinds = [*ALWAYS, *[kind for kind, there in zip(SOMETIMES, optional, strict=True) if there]]
    visible = [] if keep_lease else [LEASE]
    for kind in reversed(kinds):
        found = await _unless_denied(session.find(kind, labels), denied)
        if found is None:
            continue
        visible.append(kind)
        for item in found:
            metadata = item["metadata"]
            if not metadata.get("deletionTimestamp"):
                grace = grace_s if kind is POD else None
                name, uid = metadata["name"], metadata["uid"]
                await _unless_denied(session.delete(kind, name, uid=uid, grace_s=grace), denied)
    left = await _wait_until_gone(
        session, visible, labels, grace_s + (COLLECTION_S if budget_s is None else budget_s), denied
    )
    if denied:
        denied[0].still_running = f"Still there: {', '.join(left)}." if left else ""
        raise denied[0]
    return left


async def _wait_until_gone(
    session: Session, kinds: Sequence[Kind], labels: str, timeout_s: float, denied: Sequence[Exception]
) -> list[str]:
    """Wait until there is nothing of these kinds; returns what is still there.

    What has no one to delete it, since a right was denied, is not waited for.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        left = [item for kind in kinds for item in await _described(session, kind, labels)]
        ending = [text for text, being_deleted in left if being_deleted]
        if not left or (denied and not ending) or time.monotonic() > deadline:
            return [text for text, _ in left]
        await asyncio.sleep(_POLL_S)


async def _described(session: Session, kind: Kind, labels: str) -> list[tuple[str, bool]]:
    """The objects as text, and whether each is being deleted."""
    found = []
    for item in await session.find(kind, labels):
        ending = bool(item["metadata"].get("deletionTimestamp"))
        text = f"{kind.kind} {session.namespace}/{item['metadata']['name']}"
        found.append((f"{text} (being deleted)" if ending else text, ending))
    return found


async def _unless_denied(work: Awaitable[T], denied: list[KubernetesForbiddenError]) -> T | None:
    """The result; None, with the error in ``denied``, where Airflow lacks the right."""
    try:
        return await work
    except KubernetesForbiddenError as error:
        denied.append(error)
        return None


async def readable(session: Session, kind: Kind, labels: str) -> bool:
    """Whether there can be any: a kind that is not installed, or not allowed to us, was not made by us."""
    try:
        await session.find(kind, labels)
    except (KubernetesInvalidError, KubernetesForbiddenError):
        return False
    return True
