"""A Ray cluster on this machine: a head with logical GPUs, which needs no GPU."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airflow_arcadia.config import RayCluster
from airflow_arcadia.exceptions import (
    ArcadiaConfigError,
    LeaseError,
    RayClusterError,
    RayClusterUnreachableError,
)
from airflow_arcadia.lease import Owned
from airflow_arcadia.lease_store import LeaseStore
from airflow_arcadia.ports import free_port
from airflow_arcadia.preflight import Versions
from airflow_arcadia.processes import (
    ProcessRef,
    end,
    is_alive,
    mark,
    ray_environment,
    spawn,
    tail,
    worker_environment,
)
from airflow_arcadia.ray_dashboard import RayDashboard
from airflow_arcadia.validation import Count, parse

LAUNCHER = "local_head"
START_TIMEOUT_S = 60.0  # measured 3.5 s on an idle machine
_HEAD_POLL_S = 0.2
_ADDRESS_FILE = "ray-head.address"
_VERSIONS_TIMEOUT_S = 20.0
_TELL_VERSIONS = (
    "import importlib.metadata as m, platform; print(m.version('ray'), platform.python_version())"
)
_SOCKET_PATH_LIMIT = 107  # bytes in a sockaddr_un; Ray adds about 65 below its directory
_RAY_SOCKET_SUFFIX = 65


@dataclass(frozen=True)
class LocalHeadSpec:
    """What ``ray_cluster_spec`` may say of a local head.

    :param num_gpus: logical GPUs; default what the workers ask for.
    :param num_cpus: logical CPUs; default two for each GPU.
    """

    num_gpus: Count | None = None
    num_cpus: Count | None = None

    @classmethod
    def parse(cls, raw: object) -> LocalHeadSpec:
        """The specification from a mapping. Raises :class:`ArcadiaConfigError` naming the key at fault."""
        return parse(cls, raw, "ray_cluster_spec")


class LocalRayBackend:
    """This machine: a cluster is a Ray head with logical GPUs at a loopback address.

    :param store: where the leases are.
    :param worker_python: Python of the worker's environment.
    :param ray_token_file: file with Ray's token, where clusters ask for one.
    """

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
        LocalHeadSpec.parse(spec)

    def may_create(self, cluster: RayCluster | None) -> bool:
        """Where no head is that only cannot say everything yet: no second one can start at its ports."""
        return cluster is not None and not asyncio.run(RayDashboard(cluster.dashboard_url).answers())

    def use(self, lease: str, cluster: RayCluster) -> None:
        """Keep a head that another lease started for as long as this one holds."""
        for name in self._store.names():
            if name != lease and _address_of_head(self._store.root / name) == cluster.head_address:
                with contextlib.suppress(LeaseError):  # torn down meanwhile
                    self._store.add_user(name, lease)

    def created_before(self, lease: str, cluster: RayCluster | None) -> bool:
        """Whether the head that an earlier attempt started still runs."""
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
        asked = LocalHeadSpec.parse(spec)
        process = self._head(lease, cluster) or start_head(
            cluster,
            lease,
            store=self._store,
            num_gpus=asked.num_gpus or num_gpus,
            num_cpus=asked.num_cpus,
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


def start_head(
    cluster: RayCluster,
    lease: str,
    *,
    store: LeaseStore,
    num_gpus: int,
    num_cpus: int | None,
    worker_python: str,
    ray_token_file: str | None,
) -> ProcessRef:
    """Start a head at the cluster's loopback address, recorded in the lease before it runs.

    It ends by itself when the lease does. Raises :class:`ArcadiaConfigError` for an address of another
    machine and :class:`RayClusterError` when it cannot be started.
    """
    if not cluster.is_loopback:
        raise ArcadiaConfigError(
            f"Nothing answers for Ray cluster {cluster.name} at {cluster.dashboard_url}, and a head can only "
            f"be created at a loopback address, not at {cluster.head_address}.",
            what_to_do="Start that cluster, or set headAddress to 127.0.0.1:<port>.",
        )
    log = store.directory(lease) / "ray-head.log"
    where: dict[str, Any] = {"log": str(log), "lease": lease, "owned": f"ray_cluster/{cluster.name}"}
    store.update(lease, lambda held: held.record(Owned("ray_cluster", cluster.name, LAUNCHER, where)))
    (store.directory(lease) / _ADDRESS_FILE).write_text(cluster.head_address, encoding="utf-8")
    ray = str(Path(worker_python).with_name("ray"))
    head = head_argv(ray, cluster, num_gpus, num_cpus, _temp_dir(store.directory(lease)))
    supervisor = [
        worker_python,
        "-m",
        "airflow_arcadia.runtime.supervisor",
        "--lease-file",
        str(store.file(lease)),
        "--shared",
    ]
    env = ray_environment(worker_environment(os.environ, worker_python)) | mark(lease, where["owned"])
    if ray_token_file:
        env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": ray_token_file}
    else:
        # Left alone, Ray asks for a token as soon as it finds one in the user's home.
        env.setdefault("RAY_AUTH_MODE", "disabled")
    process = spawn([*supervisor, "--", *head], env=env, log_path=log)
    where |= {"pid": process.pid, "started_at": process.started_at}
    store.update(lease, lambda held: held.record(Owned("ray_cluster", cluster.name, LAUNCHER, where)))
    return process


def head_argv(
    ray: str, cluster: RayCluster, num_gpus: int, num_cpus: int | None, temp_dir: str | None
) -> list[str]:
    """Words that start the head; every port that the cluster's entry does not name is a free one."""
    host, _, port = cluster.head_address.rpartition(":")
    dashboard_host, _, dashboard_port = cluster.dashboard_url.partition("://")[2].rpartition(":")
    argv = [ray, "start", "--head", "--block", "--disable-usage-stats", "--include-dashboard=true"]
    argv += [f"--node-ip-address={host}", f"--port={port}"]
    argv += [f"--dashboard-host={dashboard_host}", f"--dashboard-port={dashboard_port}"]
    argv += [f"--num-gpus={num_gpus}", f"--num-cpus={num_cpus or 2 * num_gpus}"]
    # 0 lets the kernel choose; Ray's default worker range may hold a port named above.
    argv += ["--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0"]
    argv += [f"--ray-client-server-port={free_port(host)}"]
    return argv if temp_dir is None else [*argv, f"--temp-dir={temp_dir}"]


def require_running(process: ProcessRef, log: Path, deadline: float) -> None:
    """Raise :class:`RayClusterError` with the last log lines when the head died or took too long."""
    if is_alive(process) and time.monotonic() < deadline:
        return
    how = "took too long" if is_alive(process) else "ended while starting"
    lines = "\n".join(tail(log, 15))
    raise RayClusterError(
        f"The local Ray head {how}; its log ends:\n{lines}\n",
        what_to_do="Free the ports of headAddress and dashboardHost, or correct them, and run again.",
    )


def end_head(where: Mapping[str, Any], *, grace_s: float) -> list[str]:
    """End the head and everything of it; returns what is left. Idempotent."""
    ref = ProcessRef(int(where["pid"]), float(where["started_at"])) if "pid" in where else None
    return end(ref, str(where["lease"]), str(where["owned"]), grace_s=grace_s)


def _address_of_head(directory: Path) -> str | None:
    """Address of the head that the lease in ``directory`` started, if it did."""
    try:
        return (directory / _ADDRESS_FILE).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None


def _temp_dir(directory: Path) -> str | None:
    """Where Ray keeps its session: under the lease, if the sockets' paths are short enough there."""
    path = str((directory / "ray").resolve())
    return path if len(path) + _RAY_SOCKET_SUFFIX <= _SOCKET_PATH_LIMIT else None


def wait_for_head(process: ProcessRef, cluster: RayCluster, log: Path, ray_token_file: str | None) -> None:
    """Until the head tells of its node: it answers HTTP before it has one."""
    dashboard = RayDashboard(cluster.dashboard_url, ray_token_file)
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            if asyncio.run(dashboard.facts()).gpus_total:
                return
        except RayClusterUnreachableError:
            pass  # what it lacks yet; require_running ends the wait
        require_running(process, log, deadline)
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
