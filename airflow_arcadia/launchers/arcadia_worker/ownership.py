"""Take a Worker that outlives the run online, and offline again.

An annotation says which lease took it online. It is set in the same write as ``replicas``, on the version
that was read: two runs cannot both have taken it, and a teardown takes offline only what its own run took
online.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from airflow_arcadia.exceptions import ArcadiaConfigError
from airflow_arcadia.kubernetes.api import Session
from airflow_arcadia.kubernetes.conflicts import retry_on_conflict
from airflow_arcadia.kubernetes.ensure import NameTakenError
from airflow_arcadia.kubernetes.errors import (
    KubernetesError,
    KubernetesForbiddenError,
    KubernetesInvalidError,
)
from airflow_arcadia.kubernetes.kinds import LEASE, LEASE_LABEL, WORKER, Object
from airflow_arcadia.kubernetes.leases import parse_lease
from airflow_arcadia.launchers.arcadia_worker.manifest import is_ours
from airflow_arcadia.launchers.arcadia_worker.settings import DELETE, OFFLINE
from airflow_arcadia.launchers.arcadia_worker.status import is_online
from airflow_arcadia.lease import Lease, Owned
from airflow_arcadia.lease_store import no_such_lease

LAUNCHER = "custom_resource"
TAKEN_BY = "airflow-arcadia/online-for"
"""Annotation with the name of the lease that took the Worker online."""


class WorkerInUseError(KubernetesError):
    """Another run has the Worker online."""


async def take_online(
    session: Session, name: str, lease: Lease, wanted: Object | None, check: Callable[[Object], None]
) -> Object:
    """The Worker, online: taken so by this lease, or already online and then left alone.

    :param wanted: what to make of it; None for one that must be there and keeps its ``spec``.
    :param check: raises for a Worker that is there and not what was asked for.

    Raises :class:`WorkerInUseError`, :class:`NameTakenError` and :class:`ArcadiaConfigError`.
    """

    async def attempt() -> Object:
        found = await session.get(WORKER, name)
        if found is None:
            return await session.create(WORKER, _first(session, name, lease, wanted))
        return await _take(session, found, lease, wanted, check)

    # Arcadia's operator writes to the Worker, too.
    online = await retry_on_conflict(attempt)
    if not await _is_held(session, lease):
        # The teardown went by between the record and the write: nobody would take it offline again.
        await take_offline(session, name, lease.name)
        raise no_such_lease(lease.name)
    return online


async def take_offline(session: Session, name: str, lease: str) -> Object | None:
    """Take it offline if that lease took it online; returns the Worker, None when there is none."""

    async def attempt() -> Object | None:
        found = await session.get(WORKER, name)
        if found is None or taken_by(found) != lease:
            return found
        return await session.patch(WORKER, name, _change(found, None, {"replicas": 0}))

    return await retry_on_conflict(attempt)


async def workers_of_lease(session: Session, lease: str) -> list[Owned]:
    """The Workers that the lease made or took online, found without the lease's own record."""
    try:
        workers = await session.find(WORKER)
    except (KubernetesForbiddenError, KubernetesInvalidError):
        return []  # a kind that is not installed, or not allowed to us, was not made by us
    found = []
    for worker in workers:
        metadata = worker["metadata"]
        made = (metadata.get("labels") or {}).get(LEASE_LABEL) == lease
        taken = taken_by(worker) == lease
        if made or taken:
            where = {"worker": metadata["name"], "lease": lease, "teardown": OFFLINE if taken else DELETE}
            found.append(Owned("worker", metadata["name"], LAUNCHER, where))
    return found


def taken_by(worker: Mapping[str, Any]) -> str | None:
    """The lease that took it online, if any did."""
    holder = (worker["metadata"].get("annotations") or {}).get(TAKEN_BY)
    return str(holder) if holder else None


async def _take(
    session: Session, found: Object, lease: Lease, wanted: Object | None, check: Callable[[Object], None]
) -> Object:
    name, holder, online = found["metadata"]["name"], taken_by(found), is_online(found)
    if wanted is not None and not is_ours(found):
        raise NameTakenError(
            f"Worker {name} is there already and was not made by an earlier run.",
            what_to_do="Set existing=True in custom_resource to take it online as it is, or choose a name.",
        )
    if holder not in {None, lease.name} and await session.get(LEASE, str(holder)) is not None:
        raise WorkerInUseError(
            f"Worker {name} is in use: lease {holder} took it online.",
            still_running="That run goes on.",
            what_to_do="Wait for that run's teardown, or use another Worker.",
        )
    if online and holder in {None, lease.name}:
        # Taken online by a user, or by an earlier attempt.
        check(found)
        return found
    if wanted is None:
        check(found)
    spec = dict(wanted["spec"]) if wanted else {"replicas": 1}
    return await session.patch(WORKER, name, _change(found, lease.name, spec))


def _first(session: Session, name: str, lease: Lease, wanted: Object | None) -> Object:
    if wanted is None:
        raise ArcadiaConfigError(
            f"Namespace {session.namespace} has no Worker {name}.",
            what_to_do="Correct the name in custom_resource, or leave existing out to have it made.",
        )
    annotations = {**wanted["metadata"].get("annotations", {}), TAKEN_BY: lease.name}
    return {**wanted, "metadata": {**wanted["metadata"], "annotations": annotations}}


def _change(found: Object, holder: str | None, spec: Mapping[str, Any]) -> Object:
    """A merge patch that holds for this version of it alone."""
    version = found["metadata"]["resourceVersion"]
    return {"metadata": {"resourceVersion": version, "annotations": {TAKEN_BY: holder}}, "spec": dict(spec)}


async def _is_held(session: Session, lease: Lease) -> bool:
    found = await session.get(LEASE, lease.name)
    if found is None or found["metadata"].get("deletionTimestamp"):
        return False
    return found["metadata"]["uid"] == lease.uid and not parse_lease(found).released
