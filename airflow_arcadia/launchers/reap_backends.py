"""What a reaper can see and end: the leases of this machine, or those of a namespace."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

import psutil

from airflow_arcadia.exceptions import UnreadableLeaseError
from airflow_arcadia.kubernetes.api import KubernetesApi, Session
from airflow_arcadia.kubernetes.cleanup import ALWAYS, SOMETIMES, readable
from airflow_arcadia.kubernetes.kinds import LEASE, LEASE_LABEL, MANAGED_BY, MANAGER, POD, Object, selector
from airflow_arcadia.kubernetes.leases import parse_lease
from airflow_arcadia.launchers.base import Launcher
from airflow_arcadia.launchers.reaper import Held
from airflow_arcadia.launchers.teardown import teardown, teardown_in_cluster
from airflow_arcadia.launchers.warm import Look
from airflow_arcadia.lease_store import LeaseStore
from airflow_arcadia.processes import LEASE_VARIABLE, find_marked

_GPUS_VARIABLE, _LEASE_FILE_VARIABLE = "NUMBER_GPUS", "ARCADIA_LEASE_FILE"
_ENDED_PHASES = frozenset({"Succeeded", "Failed"})


class LocalBackend:
    """The leases of this machine.

    :param store: where they are.
    :param launchers: by name.
    :param look: looks at a warm worker before it is kept for another run; without it none is.
    """

    def __init__(
        self, store: LeaseStore, launchers: Mapping[str, Launcher], look: Look | None = None
    ) -> None:
        self._store = store
        self._launchers = launchers
        self._look = look

    def held(self) -> Iterator[Held]:
        """Every lease and directory of one, and what runs under a lease that has neither any more."""
        names = self._store.names()
        for name in names:
            changed_at = self._store.changed_at(name)
            if self._store.users(name, time.time()):
                continue  # its Ray head is another run's by now, and ends with that
            try:
                yield Held(name, self._store.read(name), changed_at)
            except (UnreadableLeaseError, OSError):
                yield Held(name, None, changed_at, readable=False)
        for name, started_at in sorted(self._orphans(set(names)).items()):
            yield Held(name, None, started_at)

    def gpus(self, name: str) -> int:
        """GPUs of the workers that run under that lease."""
        by_worker: dict[str, int] = {}
        for process in find_marked(name):
            with contextlib.suppress(psutil.Error, OSError, ValueError):
                environ = process.environ()
                if _GPUS_VARIABLE in environ:
                    by_worker[environ.get("ARCADIA_WORKER", "")] = int(environ[_GPUS_VARIABLE])
        return sum(by_worker.values())

    def end(self, held: Held, *, grace_s: float) -> list[str]:
        """End what the lease owns."""
        created_at = held.lease.created_at if held.lease else None
        return teardown(
            self._store,
            held.name,
            self._launchers,
            grace_s=grace_s,
            created_at=created_at,
            look=self._look,
        )

    def _orphans(self, names: set[str]) -> dict[str, float]:
        """Leases of this store that are gone but still have processes; with the latest start of one."""
        found: dict[str, float] = {}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                environ = process.environ()
                name = environ.get(LEASE_VARIABLE, "")
                # Another connection's, or another Airflow's, has its leases elsewhere.
                if name and name not in names and self._is_ours(name, environ, process):
                    found[name] = max(found.get(name, 0.0), process.create_time())
        return found

    def _is_ours(self, name: str, environ: Mapping[str, str], process: psutil.Process) -> bool:
        file = str(self._store.root / name / "lease.json")
        return environ.get(_LEASE_FILE_VARIABLE) == file or file in process.cmdline()


class ClusterBackend:
    """The leases of a namespace.

    :param api: the namespace.
    :param launchers: by name.
    :param look: looks at a warm worker before it is kept for another run; without it none is.
    """

    def __init__(
        self, api: KubernetesApi, launchers: Mapping[str, Launcher], look: Look | None = None
    ) -> None:
        self._api = api
        self._launchers = launchers
        self._look = look

    def held(self) -> list[Held]:
        """Every Lease of ours, and what carries the label of one that is not there any more."""
        return self._api.run(_held)

    def gpus(self, name: str) -> int:
        """GPUs that the pods under that lease have as limits."""

        async def work(session: Session) -> int:
            pods = await session.find(POD, selector({MANAGED_BY: MANAGER, LEASE_LABEL: name}))
            return sum(map(_gpus_of, pods))

        return self._api.run(work)

    def end(self, held: Held, *, grace_s: float) -> list[str]:
        """End what the lease owns."""
        created_at = held.lease.created_at if held.lease else None
        return teardown_in_cluster(
            self._api,
            held.name,
            self._launchers,
            grace_s=grace_s,
            created_at=created_at,
            look=self._look,
        )


async def _held(session: Session) -> list[Held]:
    ours = selector({MANAGED_BY: MANAGER})
    found: dict[str, Held] = {}
    for item in await session.find(LEASE, ours):
        name = item["metadata"]["name"]
        try:
            found[name] = Held(name, parse_lease(item), _changed_at(item))
        except UnreadableLeaseError:
            found[name] = Held(name, None, _changed_at(item), readable=False)
    for kind in (*ALWAYS, *SOMETIMES):
        if not await readable(session, kind, ours):
            continue
        for item in await session.find(kind, ours):
            name = (item["metadata"].get("labels") or {}).get(LEASE_LABEL)
            if name and name not in found:
                found[name] = Held(name, None, _changed_at(item))
    return sorted(found.values(), key=lambda held: held.name)


def _changed_at(item: Object) -> float:
    """The last renewal, or the creation, as far as the object tells; 0 where it tells neither."""
    spec: Mapping[str, Any] = item.get("spec") or {}
    times = [item["metadata"].get("creationTimestamp"), spec.get("renewTime")]
    known = [0.0]
    for text in times:
        with contextlib.suppress(ValueError, TypeError, AttributeError):
            known.append(datetime.fromisoformat(str(text).replace("Z", "+00:00")).timestamp())
    return max(known)


def _gpus_of(pod: Object) -> int:
    if (pod.get("status") or {}).get("phase") in _ENDED_PHASES:
        return 0
    limits = [(c.get("resources") or {}).get("limits") or {} for c in pod["spec"]["containers"]]
    return sum(int(count) for limit in limits for key, count in limit.items() if key.endswith("/gpu"))
