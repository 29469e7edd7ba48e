"""Leases as Lease objects of the cluster: deleting one collects everything that refers to it as its owner.

Who holds it and for how long stands in the fields of ``coordination.k8s.io/v1``; identity and what it owns,
which have none there, in annotations.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
from collections.abc import Callable

from airflow_arcadia.exceptions import UnreadableLeaseError
from airflow_arcadia.kubernetes.api import KubernetesApi, Session
from airflow_arcadia.kubernetes.conflicts import retry_on_conflict
from airflow_arcadia.kubernetes.errors import KubernetesConflictError
from airflow_arcadia.kubernetes.kinds import (
    LEASE,
    MANAGED_BY,
    MANAGER,
    WARM_LABEL,
    Object,
    labels_of_lease,
    selector,
)
from airflow_arcadia.kubernetes.times import micro_time, seconds
from airflow_arcadia.lease import DEFAULT_DURATION_S, Identity, Lease, unreadable
from airflow_arcadia.lease_store import no_such_lease
from airflow_arcadia.warm import renew_use

IDENTITY = "airflow-arcadia/identity"
OWNED = "airflow-arcadia/owned"
RELEASED = "airflow-arcadia/released"
WARM = "airflow-arcadia/warm-worker"

log = logging.getLogger(__name__)


class KubernetesLeases:
    """All leases of one namespace.

    :param api: the namespace.
    """

    def __init__(self, api: KubernetesApi) -> None:
        self._api = api

    def reserve(self, identity: Identity, now: float, duration_s: float = DEFAULT_DURATION_S) -> Lease:
        """The lease of ``identity``: a new one, or the one reserved before, renewed."""
        return self._api.run(lambda session: self._reserve(session, identity, now, duration_s))

    def read(self, name: str) -> Lease | None:
        """The lease, or None when the cluster says that there is none."""

        async def work(session: Session) -> Lease | None:
            found = await session.get(LEASE, name)
            return parse_lease(found) if found else None

        return self._api.run(work)

    def update(self, name: str, change: Callable[[Lease], Lease]) -> Lease:
        """Read, change and replace, again when somebody else was faster."""
        return self._api.run(lambda session: change_lease(session, name, change))

    def create(self, lease: Lease) -> bool:
        """Make it; False when there is one of that name already."""

        async def work(session: Session) -> bool:
            try:
                await session.create(LEASE, lease_object(lease))
            except KubernetesConflictError:
                return False  # or ours, where an earlier request got no answer: it is found then
            return True

        return self._api.run(work)

    def warm(self) -> list[Lease]:
        """All leases of warm workers that can be read."""

        async def work(session: Session) -> list[Lease]:
            found = []
            for item in await session.find(LEASE, f"{selector({MANAGED_BY: MANAGER})},{WARM_LABEL}"):
                if not item["metadata"].get("deletionTimestamp"):
                    with contextlib.suppress(UnreadableLeaseError):
                        found.append(parse_lease(item))
            return found

        return self._api.run(work)

    async def renew(self, name: str, now: float) -> Lease:
        """Renew it, and its use of a warm worker, from asynchronous code."""
        async with self._api.session() as session:
            run = await change_lease(session, name, lambda held: held.renew(now))
            if run.warm_name is not None:
                await change_lease(session, run.warm_name, lambda held: renew_use(held, run, now))
            return run

    def names(self) -> list[str]:
        """Names of all leases of ours in the namespace, those that cannot be read included."""

        async def work(session: Session) -> list[str]:
            found = await session.find(LEASE, selector({MANAGED_BY: MANAGER}))
            return sorted(item["metadata"]["name"] for item in found)

        return self._api.run(work)

    async def _reserve(self, session: Session, identity: Identity, now: float, duration_s: float) -> Lease:
        name = identity.lease_name
        if await session.get(LEASE, name) is None:
            try:
                made = await session.create(LEASE, lease_object(Lease(name, identity, now, now, duration_s)))
                return parse_lease(made)
            except KubernetesConflictError:
                pass  # an earlier request of ours that got no answer, or another attempt of the same task

        fresh = Lease(name, identity, now, now, duration_s)

        def take(held: Lease) -> Lease:
            # Released, but not yet gone: what it still owns stays its to collect.
            return dataclasses.replace(fresh, owned=held.owned) if held.released else held.renew(now)

        return await change_lease(session, name, take, unreadable_as=fresh)


async def change_lease(
    session: Session, name: str, change: Callable[[Lease], Lease], *, unreadable_as: Lease | None = None
) -> Lease:
    """Change the lease atomically.

    :param unreadable_as: what to write in place of a lease that cannot be read; None raises.

    Raises :class:`~airflow_arcadia.exceptions.LeaseError` when there is none.
    """

    async def attempt() -> Lease:
        found = await session.get(LEASE, name)
        if found is None or found["metadata"].get("deletionTimestamp"):
            raise no_such_lease(name)
        try:
            wanted = lease_object(change(parse_lease(found)))
        except UnreadableLeaseError as error:
            if unreadable_as is None:
                raise
            log.warning("%s It is written anew.", error.what)
            wanted = lease_object(unreadable_as)
        wanted["metadata"] = found["metadata"] | {
            "labels": (found["metadata"].get("labels") or {}) | wanted["metadata"]["labels"],
            "annotations": (found["metadata"].get("annotations") or {}) | wanted["metadata"]["annotations"],
        }
        return parse_lease(await session.replace(LEASE, wanted))

    return await retry_on_conflict(attempt)


def lease_object(lease: Lease) -> Object:
    """The Lease object for a lease."""
    identity = lease.identity
    labels = labels_of_lease(lease.name)
    annotations = {
        IDENTITY: json.dumps(vars(identity), sort_keys=True),
        OWNED: json.dumps([vars(item) for item in lease.owned], sort_keys=True),
        RELEASED: "true" if lease.released else "false",
    }
    if lease.warm is not None:
        labels[WARM_LABEL] = lease.warm.key
        annotations[WARM] = json.dumps(dataclasses.asdict(lease.warm), sort_keys=True)
    return {
        "apiVersion": LEASE.api_version,
        "kind": LEASE.kind,
        "metadata": {"name": lease.name, "labels": labels, "annotations": annotations},
        "spec": {
            "holderIdentity": f"{identity.dag_id}/{identity.run_id}/{identity.group}/{identity.map_index}",
            "leaseDurationSeconds": max(1, math.ceil(lease.duration_s)),
            "acquireTime": micro_time(lease.created_at),
            "renewTime": micro_time(lease.renewed_at),
        },
    }


def parse_lease(found: Object) -> Lease:
    """Inverse of :func:`lease_object`; fields and annotations it does not know are ignored.

    Raises :class:`~airflow_arcadia.exceptions.UnreadableLeaseError` when what every lease has is missing.
    """
    metadata = found["metadata"]
    try:
        spec, annotations = found["spec"], metadata["annotations"]
        raw = {
            "name": metadata["name"],
            "identity": json.loads(annotations[IDENTITY]),
            "renewed_at": seconds(spec["renewTime"]),
            "created_at": seconds(spec.get("acquireTime") or spec["renewTime"]),
            "duration_s": spec["leaseDurationSeconds"],
            "owned": json.loads(annotations.get(OWNED, "[]")),
            "released": annotations.get(RELEASED) == "true",
            "warm": json.loads(annotations.get(WARM, "null")),
            "uid": metadata.get("uid", ""),
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise unreadable(metadata["name"], f"{type(error).__name__}: {error}") from error
    return Lease.from_dict(raw)
