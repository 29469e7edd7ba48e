"""Where workers run, as far as Ray is concerned: what they bring, and where a cluster can be made."""

from __future__ import annotations

import asyncio
import functools
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from airflow_arcadia.config import RayCluster
from airflow_arcadia.exceptions import ArcadiaConfigError
from airflow_arcadia.lease_store import LeaseStore
from airflow_arcadia.preflight import Versions
from airflow_arcadia.processes import ProcessRef, is_alive
from airflow_arcadia.ray_cluster import local
from airflow_arcadia.ray_cluster.dashboard import RayClusterUnreachableError, RayDashboard
from airflow_arcadia.worker import parse_num_gpus

_HEAD_POLL_S = 0.2
_VERSIONS_TIMEOUT_S = 20.0
_TELL_VERSIONS = (
    "import importlib.metadata as m, platform; print(m.version('ray'), platform.python_version())"
)


class Site(Protocol):
    """This machine, or a namespace of a cluster."""

    def versions(self) -> Versions | None:
        """What the worker will run; None where that is only known inside its image."""

    def dashboard(self, url: str) -> RayDashboard:
        """A client with the token that Ray clusters ask for."""

    def check(self, spec: Mapping[str, Any] | None) -> None:
        """Raise :class:`ArcadiaConfigError` for a ``ray_cluster_spec`` that makes no sense here."""

    def may_create(self, cluster: RayCluster | None) -> bool:
        """Whether one can be made in place of ``cluster``, or beside all (None)."""

    def created_before(self, lease: str, cluster: RayCluster | None) -> bool:
        """Whether an earlier try made one under that lease, which is still there."""

    def create(
        self, lease: str, cluster: RayCluster | None, num_gpus: int, spec: Mapping[str, Any]
    ) -> RayCluster:
        """Make one under the lease, or find the one made before, wait for it, and say where it is.

        Raises :class:`~airflow_arcadia.exceptions.RayClusterError` with the reason when it does not come up.
        """


class LocalSite:
    """This machine: a cluster is a Ray head with logical GPUs at a loopback address.

    :param store: where the leases are.
    :param worker_python: Python of the worker's environment.
    :param ray_token_file: file with Ray's token, where clusters ask for one.
    """

    SPEC_KEYS = ("num_gpus", "num_cpus")

    def __init__(self, store: LeaseStore, worker_python: str, ray_token_file: str | None = None) -> None:
        self._store = store
        self._python = worker_python
        self._token_file = ray_token_file

    def versions(self) -> Versions:
        """Those of the worker's environment."""
        return worker_versions(self._python)

    def dashboard(self, url: str) -> RayDashboard:
        """A client with the token."""
        return RayDashboard(url, self._token_file)

    def check(self, spec: Mapping[str, Any] | None) -> None:
        """Raise :class:`ArcadiaConfigError` for an unknown key."""
        for key in spec or {}:
            if key not in self.SPEC_KEYS:
                raise ArcadiaConfigError(
                    f"ray_cluster_spec has the unknown key {key!r}.",
                    what_to_do=f"Known for a local head: {', '.join(self.SPEC_KEYS)}.",
                )

    def may_create(self, cluster: RayCluster | None) -> bool:
        """Where no head is that only cannot say everything yet: no second one can start at its ports."""
        return cluster is not None and not asyncio.run(RayDashboard(cluster.dashboard_url).answers())

    def created_before(self, lease: str, cluster: RayCluster | None) -> bool:
        """Whether the head that an earlier try started still runs."""
        return cluster is not None and self._head(lease, cluster) is not None

    def create(
        self, lease: str, cluster: RayCluster | None, num_gpus: int, spec: Mapping[str, Any]
    ) -> RayCluster:
        """Start the head at the cluster's address."""
        if cluster is None:
            raise ArcadiaConfigError(
                "A local Ray head needs an entry of arcadia-config that names its address.",
                what_to_do="Add one to rayClusters with headAddress 127.0.0.1:<port>.",
            )
        process = self._head(lease, cluster) or local.start_head(
            cluster,
            lease,
            store=self._store,
            num_gpus=parse_num_gpus(spec.get("num_gpus") or num_gpus),
            num_cpus=int(spec["num_cpus"]) if spec.get("num_cpus") else None,
            worker_python=self._python,
            ray_token_file=self._token_file,
        )
        log = self._store.directory(lease) / "ray-head.log"
        wait_for_head(process, cluster, log, self._token_file)
        return cluster

    def _head(self, lease: str, cluster: RayCluster) -> ProcessRef | None:
        held = self._store.read(lease)
        item = held.find("ray_cluster", cluster.name) if held else None
        if item is None or "pid" not in item.where:
            return None
        process = ProcessRef(int(item.where["pid"]), float(item.where["started_at"]))
        return process if is_alive(process) else None


def wait_for_head(process: ProcessRef, cluster: RayCluster, log: Path, ray_token_file: str | None) -> None:
    """Until the head tells of its node: it answers HTTP before it has one."""
    dashboard = RayDashboard(cluster.dashboard_url, ray_token_file)
    deadline = time.monotonic() + local.START_TIMEOUT_S
    while True:
        try:
            if asyncio.run(dashboard.facts()).gpus_total:
                return
        except RayClusterUnreachableError:
            pass  # what it lacks yet; require_running ends the wait
        local.require_running(process, log, deadline)
        time.sleep(_HEAD_POLL_S)


@functools.lru_cache(maxsize=8)
def worker_versions(python: str) -> Versions:
    """Ray and Python of the worker's environment.

    Raises :class:`ArcadiaConfigError` when that Python cannot be run or has no Ray.
    """
    try:
        told = subprocess.run(
            [python, "-c", _TELL_VERSIONS],
            capture_output=True,
            text=True,
            timeout=_VERSIONS_TIMEOUT_S,
            check=True,
        )
        ray, version = told.stdout.split()
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1:]
        raise ArcadiaConfigError(
            f"The worker's Python {python} cannot tell its Ray version: {' '.join(said)}.",
            what_to_do="Set worker_python of the connection to a Python that has ray and vllm.",
        ) from error
    return Versions(ray, version)
