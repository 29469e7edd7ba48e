"""From arcadia-config to a Ray cluster that is proven usable: an existing one, or a local head."""

from __future__ import annotations

import asyncio
import functools
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from airflow_arcadia.config import ArcadiaConfig, RayCluster
from airflow_arcadia.exceptions import ArcadiaConfigError, ArcadiaError, RayClusterError
from airflow_arcadia.lease import Owned
from airflow_arcadia.lease_store import LeaseStore
from airflow_arcadia.preflight import (
    RayClusterBusyError,
    RayClusterUnfitError,
    Versions,
    check_cluster,
    require,
)
from airflow_arcadia.processes import ProcessRef, is_alive
from airflow_arcadia.ray_cluster import local
from airflow_arcadia.ray_cluster.dashboard import ClusterFacts, RayClusterUnreachableError, RayDashboard
from airflow_arcadia.worker import RayConnection, parse_num_gpus

AUTO = "auto"
CREATE = ("never", "if_missing")
_SPEC_KEYS = ("num_gpus", "num_cpus")
_HEAD_POLL_S = 0.2
_BUSY_POLL_S = 0.5
_VERSIONS_TIMEOUT_S = 20.0
_TELL_VERSIONS = (
    "import importlib.metadata as m, platform; print(m.version('ray'), platform.python_version())"
)


def provision(
    config: ArcadiaConfig,
    ray_cluster: int | str,
    num_gpus: int,
    *,
    lease: str,
    store: LeaseStore,
    worker_python: str,
    create: str = "never",
    ray_cluster_spec: Mapping[str, Any] | None = None,
    ray_token_file: str | None = None,
    busy_wait_s: float = 0.0,
) -> RayConnection:
    """The connection to a cluster that can take a worker of ``num_gpus`` GPUs now.

    :param busy_wait_s: seconds to ask again while GPUs are in use: Ray counts those of a worker that has
        just ended as used for some seconds more.

    A head that ``create="if_missing"`` starts is recorded under ``lease`` and ends with it; called again,
    it is found again. Raises :class:`ArcadiaConfigError` for what is wrong in the request and
    :class:`RayClusterError` (its ``retryable`` tells whether waiting can help) for what is wrong with the
    cluster.
    """
    _check_request(create, ray_cluster_spec)
    deadline = time.monotonic() + busy_wait_s
    while True:
        try:
            return _provision(
                config,
                ray_cluster,
                num_gpus,
                lease=lease,
                store=store,
                worker_python=worker_python,
                create=create,
                ray_cluster_spec=ray_cluster_spec,
                ray_token_file=ray_token_file,
            )
        except RayClusterBusyError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(_BUSY_POLL_S)


def _provision(
    config: ArcadiaConfig,
    ray_cluster: int | str,
    num_gpus: int,
    *,
    lease: str,
    store: LeaseStore,
    worker_python: str,
    create: str,
    ray_cluster_spec: Mapping[str, Any] | None,
    ray_token_file: str | None,
) -> RayConnection:
    if ray_cluster == AUTO:
        config.select(0)  # an empty list has one message
        return _choose(config, num_gpus, worker_python, ray_token_file)
    index, cluster = config.select(ray_cluster)
    created = _created_before(store, lease, cluster)
    if created is None:
        try:
            return _usable(index, cluster, num_gpus, worker_python, ray_token_file)
        except RayClusterUnreachableError:
            if create != "if_missing" or _is_a_dashboard(cluster):
                raise
    spec = ray_cluster_spec or {}
    process = created or local.start_head(
        cluster,
        lease,
        store=store,
        num_gpus=parse_num_gpus(spec.get("num_gpus") or num_gpus),
        num_cpus=int(spec["num_cpus"]) if spec.get("num_cpus") else None,
        worker_python=worker_python,
        ray_token_file=ray_token_file,
    )
    wait_for_head(process, cluster, store.directory(lease) / "ray-head.log", ray_token_file)
    return _usable(index, cluster, num_gpus, worker_python, ray_token_file, created=True)


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


def _check_request(create: str, spec: Mapping[str, Any] | None) -> None:
    if create not in CREATE:
        raise ArcadiaConfigError(
            f"create is {create!r}.", what_to_do=f"Use one of {', '.join(map(repr, CREATE))}."
        )
    for key in spec or {}:
        if key not in _SPEC_KEYS:
            raise ArcadiaConfigError(
                f"ray_cluster_spec has the unknown key {key!r}.",
                what_to_do=f"Known: {', '.join(_SPEC_KEYS)}.",
            )


def _usable(
    index: int,
    cluster: RayCluster,
    num_gpus: int,
    worker_python: str,
    ray_token_file: str | None,
    *,
    created: bool = False,
) -> RayConnection:
    facts = asyncio.run(RayDashboard(cluster.dashboard_url, ray_token_file).facts())
    require(cluster.name, _findings(facts, num_gpus, worker_python))
    if not created and _refuses(cluster):
        raise RayClusterUnreachableError(
            f"Nothing listens at headAddress {cluster.head_address} of Ray cluster {cluster.name}, though "
            f"its dashboard {cluster.dashboard_url} answers.",
            what_to_do="Correct headAddress: it is the head's GCS port, 6379 by default.",
        )
    return RayConnection(
        index=index,
        name=cluster.name,
        address=cluster.head_address,
        dashboard_url=cluster.dashboard_url,
        ray_version=facts.ray_version,
        python_version=facts.python_version,
        gpus_total=facts.gpus_total,
        gpus_free=facts.gpus_free,
        created=created,
    )


def _findings(facts: ClusterFacts, num_gpus: int, worker_python: str) -> list[Any]:
    cluster = Versions(facts.ray_version, facts.python_version)
    return check_cluster(cluster, worker_versions(worker_python), facts.gpus_total, facts.gpus_free, num_gpus)


def _choose(
    config: ArcadiaConfig, num_gpus: int, worker_python: str, ray_token_file: str | None
) -> RayConnection:
    """The fitting cluster with the most free GPUs."""
    fitting: list[RayConnection] = []
    errors: list[ArcadiaError] = []
    for index, cluster in enumerate(config.ray_clusters):
        try:
            fitting.append(_usable(index, cluster, num_gpus, worker_python, ray_token_file))
        except RayClusterError as error:
            errors.append(error)
    if fitting:
        return max(fitting, key=lambda connection: connection.gpus_free)
    kind = RayClusterBusyError if any(error.retryable for error in errors) else RayClusterUnfitError
    raise kind(
        f"No Ray cluster of arcadia-config can take a worker of {num_gpus} GPUs. "
        + " ".join(error.what for error in errors),
        what_to_do=errors[0].what_to_do,
    )


def _created_before(store: LeaseStore, lease: str, cluster: RayCluster) -> ProcessRef | None:
    """The head that an earlier try started under this lease, if it still runs."""
    held = store.read(lease)
    item: Owned | None = held.find("ray_cluster", cluster.name) if held else None
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


def _is_a_dashboard(cluster: RayCluster) -> bool:
    """Whether a head is there that only cannot say everything yet: no second one can start at its ports."""
    return asyncio.run(RayDashboard(cluster.dashboard_url).answers())


def _refuses(cluster: RayCluster) -> bool:
    """Whether the head's host itself says that nothing listens there; silence proves nothing."""

    async def connect() -> bool:
        host, _, port = cluster.head_address.rpartition(":")
        try:
            opening = asyncio.open_connection(host.strip("[]"), int(port))
            _, writer = await asyncio.wait_for(opening, timeout=1.0)
        except ConnectionRefusedError:
            return True
        except (OSError, asyncio.TimeoutError):
            return False
        writer.close()
        return False

    return asyncio.run(connect())
