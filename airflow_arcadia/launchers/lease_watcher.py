"""End, with Airflow or without it, what the lapsed leases of a namespace own.

``python -m airflow_arcadia.launchers.lease_watcher`` runs as a small Deployment beside the workers (see
``deploy/lease-watcher.yaml``). Pods, Arcadia's Workers and Ray clusters are ended alike, and no worker's pod,
which runs a model's code, needs a token of the API server. For a pod whose own batch gets further it renews.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from airflow_arcadia.exceptions import ArcadiaError
from airflow_arcadia.kubernetes.api import KubernetesApi
from airflow_arcadia.kubernetes.leases import KubernetesLeases
from airflow_arcadia.launchers.arcadia_worker.launcher import CustomResourceLauncher
from airflow_arcadia.launchers.base import Launcher
from airflow_arcadia.launchers.batch_renewal import BatchRenewal
from airflow_arcadia.launchers.ends_aside import EndsAside
from airflow_arcadia.launchers.reap_backends import ClusterBackend
from airflow_arcadia.launchers.reaper import SETTLING_S, Backend, Held, Report, reap
from airflow_arcadia.lease import Identity, LeaseWatch

INTERVAL_S = 10.0
_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")

log = logging.getLogger(__name__)


class Watches:
    """What is known of every lease; decides which of them nobody holds any more.

    It counts by its own clock from when it saw a renewal, so that clocks that differ matter only for leases
    that it has not seen before.

    :param longest_gap_s: seconds between two looks; of a longer gap no more than this counts. While the API
        server is away nobody can renew, and whoever comes first when it is back is a matter of luck.
    """

    def __init__(self, longest_gap_s: float = 2 * INTERVAL_S) -> None:
        self._watches: dict[str, LeaseWatch] = {}
        self._ended_at: dict[str, float] = {}
        self._longest_gap_s = longest_gap_s
        self._looked_at: float | None = None

    def look(self, now: float) -> None:
        """Note that the leases are read again."""
        if self._looked_at is not None and (gap := now - self._looked_at) > self._longest_gap_s:
            for name, watch in self._watches.items():
                self._watches[name] = replace(watch, seen_at=watch.seen_at + gap - self._longest_gap_s)
        self._looked_at = now

    def why(self, held: Held, now: float) -> str | None:
        """Why nobody holds the lease any more, or None while somebody may."""
        watch = self._watches.get(held.name, LeaseWatch.start(now))
        if held.readable:
            watch = watch.read(held.lease, now)
        self._watches[held.name] = watch
        why = watch.ended(now)
        if why is None:
            self._ended_at.pop(held.name, None)
            return None
        ended_at = self._ended_at.setdefault(held.name, now)
        if watch.lapsed(now) or now >= ended_at + SETTLING_S:
            return why
        return None  # released or deleted just now: whoever did so ends the rest

    def forget_others(self, names: Sequence[str]) -> None:
        """Forget every lease that is not among ``names``."""
        for known in (self._watches, self._ended_at):
            for name in set(known) - set(names):
                del known[name]


class WatchedCluster(ClusterBackend):
    """The leases of a namespace, after those were renewed whose workers get on with a batch of their own.

    :param api: the namespace.
    :param launchers: by name.
    """

    def __init__(self, api: KubernetesApi, launchers: Mapping[str, Launcher]) -> None:
        super().__init__(api, launchers)
        self._renewal = BatchRenewal(api)

    def held(self) -> list[Held]:
        """Every Lease of ours, and what carries the label of one that is not there any more."""
        return self._renewal.renew(super().held(), time.time())


def sweep(backend: Backend, watches: Watches, clock: Callable[[], float], *, grace_s: float) -> Report:
    """Look at every lease once, and end what nobody holds.

    :param clock: seconds since the epoch; asked once the leases are read, which may take an outage's time.
    """
    found = list(backend.held())
    now = clock()
    watches.look(now)
    report = reap(
        backend,
        _unknown,
        now,
        grace_s=grace_s,
        only=lambda held: watches.why(held, now),
        among=found,
        count_gpus=False,
    )
    watches.forget_others([*report.kept, *report.errors, *(r.name for r in report.reaped if r.left)])
    return report


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: runs until it is ended."""
    parser = argparse.ArgumentParser(
        prog="python -m airflow_arcadia.launchers.lease_watcher", description=__doc__
    )
    parser.add_argument("--namespace", default=None, help="by default the one the watcher runs in")
    parser.add_argument("--interval", type=float, default=INTERVAL_S, help="seconds between two sweeps")
    parser.add_argument("--grace", type=float, default=30.0, help="seconds between SIGTERM and SIGKILL")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    api = KubernetesApi(_connect, options.namespace or _NAMESPACE.read_text(encoding="utf-8").strip())
    of_workers = CustomResourceLauncher(api, KubernetesLeases(api))
    backend = EndsAside(WatchedCluster(api, {of_workers.name: of_workers}))
    watches = Watches(2 * options.interval)
    while True:
        try:
            report = sweep(backend, watches, time.time, grace_s=options.grace)
        except ArcadiaError as error:
            log.warning("The leases cannot be read: %s", error)
        else:
            for item in report.reaped:
                log.info("Ending %s (%d GPUs): %s", item.name, item.gpus, item.why)
        time.sleep(options.interval)


def _unknown(identity: Identity) -> None:
    """Airflow is not asked."""


def _connect() -> AbstractAsyncContextManager[Any]:
    @contextlib.asynccontextmanager
    async def connected() -> AsyncIterator[Any]:
        from kubernetes_asyncio import client, config

        if os.environ.get("KUBERNETES_SERVICE_HOST"):
            config.load_incluster_config()  # type: ignore[no-untyped-call]
        else:
            await config.load_kube_config()
        async with client.ApiClient() as opened:
            yield opened

    return connected()


if __name__ == "__main__":
    sys.exit(main())
