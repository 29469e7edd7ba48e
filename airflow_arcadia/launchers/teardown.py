"""End everything a lease owns, in order, and say what is left."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from airflow_arcadia.exceptions import LeaseError, RayClusterError, UnreadableLeaseError
from airflow_arcadia.kubernetes.api import KubernetesApi
from airflow_arcadia.kubernetes.cleanup import collect
from airflow_arcadia.kubernetes.leases import KubernetesLeases
from airflow_arcadia.launchers.arcadia_worker.ownership import workers_of_lease
from airflow_arcadia.launchers.base import Launcher, Stops
from airflow_arcadia.launchers.warm import Look, WarmWorkers
from airflow_arcadia.lease import Lease, Owned
from airflow_arcadia.lease_store import LeaseStore
from airflow_arcadia.processes import SHM_WAIT_S, end_marked, remove_unmapped_shm
from airflow_arcadia.ray_cluster import local
from airflow_arcadia.ray_cluster.jobs import groups_of_lease
from airflow_arcadia.ray_dashboard import RayDashboard

_PLACEMENT_GROUP_WAIT_S = 10.0  # Ray removes a dead driver's groups within a second or two
_POLL_S = 0.2

log = logging.getLogger(__name__)


def teardown(
    store: LeaseStore,
    name: str,
    launchers: Mapping[str, Launcher],
    *,
    grace_s: float,
    created_at: float | None = None,
    look: Look | None = None,
) -> list[str]:
    """End what lease ``name`` owns, workers before their clusters. Idempotent.

    A warm worker that it uses is given back: it ends only if nobody may use it any more.

    What carries the lease's name is ended even when the lease cannot be read or does not name it. Returns
    what is still there, as text. Only when nothing is, the lease itself goes: until then a later teardown
    finds everything again.

    :param launchers: by name; each ends what it launched.
    :param grace_s: seconds a process may take to end before it is killed.
    :param created_at: only the lease created then: one that was reserved anew since is left alone.
    :param look: looks at a warm worker before it is kept; without it none is.
    """

    def end(warm_lease: str) -> list[str]:
        return teardown(store, warm_lease, launchers, grace_s=grace_s)

    try:
        lease = _release(store, name, created_at)
    except _ReservedAnewError:
        return []
    left: list[str] = []
    workers = [item for item in lease.owned if item.kind == "worker"] if lease else []
    for worker in workers:
        launcher = launchers.get(worker.launcher)
        # What another version launched is ended by its marks below.
        left += launcher.stop(worker.where, grace_s=grace_s) if isinstance(launcher, Stops) else ()
    left += end_marked(name, "worker/", grace_s=grace_s)
    for worker in workers:
        left += _wait_for_placement_groups(name, worker)
    left += _remove_shared_memory(store.root / name)
    left += _give_back(WarmWorkers(store, look=look, end=end), name, lease, end)
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(LeaseError):  # there is none: only processes may be left of it
            stack.enter_context(store.locked(name))
        if users := store.users(name, time.time()):
            log.info(
                "The Ray head of lease %s is still used by %s and ends with them.", name, ", ".join(users)
            )
            return left
        for item in lease.owned if lease else ():
            if item.launcher == local.LAUNCHER:
                left += local.end_head(item.where, grace_s=grace_s)
        left += [text for text in end_marked(name, grace_s=grace_s) if text not in left]
        if not left:
            store.remove(name)
    if not left:
        left += _end_unused(store, name, launchers, grace_s=grace_s)
    return left


def _end_unused(
    store: LeaseStore, user: str, launchers: Mapping[str, Launcher], *, grace_s: float
) -> list[str]:
    """End the Ray heads of other leases that were kept for this one alone."""
    left: list[str] = []
    for name in store.remove_user(user):
        try:
            maker = store.read(name)
        except (UnreadableLeaseError, OSError):
            continue  # the reaper ends it once it has not changed for long
        if maker is not None and maker.lapsed(time.time()):
            left += teardown(store, name, launchers, grace_s=grace_s)
    return left


def _give_back(
    warm: WarmWorkers, run: str, lease: Lease | None, end: Callable[[str], list[str]]
) -> list[str]:
    """End the run's use of a warm worker; returns what is left of one that nobody may use any more."""
    names = warm.used_by(run) if lease is None else filter(None, [lease.warm_name])
    return [text for name in warm.give_back(run, list(names)) for text in end(name)]


class _ReservedAnewError(Exception):
    """The lease is not the one that was to be torn down, but a later one of the same name, or held again."""


def _released(held: Lease, created_at: float | None) -> Lease:
    if created_at is not None and held.created_at != created_at:
        raise _ReservedAnewError
    if created_at is not None and held.warm is not None and not held.lapsed(time.time()):
        raise _ReservedAnewError  # a run has adopted it since the reaper looked
    return held.release()


def _release(store: LeaseStore, name: str, created_at: float | None) -> Lease | None:
    """Mark the lease as released, so that whoever watches it starts to end; returns it if it can be read."""
    try:
        return store.update(name, lambda held: _released(held, created_at))
    except LeaseError:
        return None  # never reserved, or another teardown was faster
    except UnreadableLeaseError as error:
        log.warning("%s What carries its name is ended without it.", error.what)
        return None


def teardown_in_cluster(
    api: KubernetesApi,
    name: str,
    launchers: Mapping[str, Launcher],
    *,
    grace_s: float,
    created_at: float | None = None,
    look: Look | None = None,
) -> list[str]:
    """End what lease ``name`` owns in the cluster. Idempotent.

    A warm worker that it uses is given back: it ends only if nobody may use it any more.

    Workers that do not end with the Lease object, or whose pods do not carry its label, are ended by their
    launcher first. What carries the lease's label is ended even when the Lease cannot be read. Returns what
    is still there, as text; only when none of these is, the Lease goes.

    :param created_at: only the lease created then: one that was reserved anew since is left alone.
    :param look: looks at a warm worker before it is kept; without it none is.
    """
    left: list[str] = []
    leases, lease = KubernetesLeases(api), None
    owned: Sequence[Owned] = ()

    def end(warm_lease: str) -> list[str]:
        return teardown_in_cluster(api, warm_lease, launchers, grace_s=grace_s)

    try:
        # Released first: a launch that still goes on sees it, and takes back what it did.
        lease = leases.update(name, lambda found: _released(found, created_at))
        owned = lease.owned
    except _ReservedAnewError:
        return []
    except LeaseError:
        pass  # never reserved, or another teardown was faster
    except UnreadableLeaseError as error:
        log.warning("%s What carries its label is ended without it.", error.what)
        owned = api.run(lambda session: workers_of_lease(session, name))
    for item in owned:
        launcher = launchers.get(item.launcher)
        if isinstance(launcher, Stops):
            left += launcher.stop(item.where, grace_s=grace_s)
    left += _give_back(WarmWorkers(leases, look=look, end=end), name, lease, end)
    found = api.run(lambda session: collect(session, name, grace_s=grace_s, keep_lease=bool(left)))
    return left + [text for text in found if text.removesuffix(" (being deleted)") not in left]


def _wait_for_placement_groups(lease: str, worker: Owned) -> list[str]:
    """Wait until the Ray cluster the worker was placed on, which may outlive it, has none of its groups."""
    url = worker.where.get("ray_dashboard")
    if not url:
        return []
    dashboard = RayDashboard(url, worker.where.get("ray_token_file"))
    deadline = time.monotonic() + _PLACEMENT_GROUP_WAIT_S
    while True:
        try:
            held = asyncio.run(groups_of_lease(dashboard, lease))
        except (RayClusterError, OSError):
            # Without its head a cluster holds nothing; if it only cannot be read, its own clean-up of a
            # driver that is gone does not need us.
            return []
        if not held or time.monotonic() > deadline:
            return [f"placement group {group.group_id} on the Ray cluster at {url}" for group in held]
        time.sleep(_POLL_S)


def _remove_shared_memory(directory: Path) -> list[str]:
    recorded: list[str] = []
    for file in directory.glob("*.shm"):
        with contextlib.suppress(OSError, UnicodeDecodeError):  # gone meanwhile, or damaged
            recorded += file.read_text().splitlines()
    return [f"shared memory {path}" for path in remove_unmapped_shm(recorded, wait_s=SHM_WAIT_S)]
