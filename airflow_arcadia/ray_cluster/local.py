"""A Ray head on this machine, with logical GPUs: the real thing, rehearsed without a GPU."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from airflow_arcadia.config import RayCluster
from airflow_arcadia.exceptions import ArcadiaConfigError, RayClusterError
from airflow_arcadia.lease import Owned
from airflow_arcadia.lease_store import LeaseStore
from airflow_arcadia.ports import free_port
from airflow_arcadia.processes import ProcessRef, end, is_alive, mark, spawn, tail, worker_environment

LAUNCHER = "local_head"
START_TIMEOUT_S = 60.0  # measured 3.5 s on an idle machine
_SOCKET_PATH_LIMIT = 107  # bytes in a sockaddr_un; Ray adds about 65 below its directory
_RAY_SOCKET_SUFFIX = 65


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
    ray = str(Path(worker_python).with_name("ray"))
    head = head_argv(ray, cluster, num_gpus, num_cpus, _temp_dir(store.directory(lease)))
    guard = [
        worker_python,
        "-m",
        "airflow_arcadia.runtime.supervisor",
        "--lease-file",
        str(store.file(lease)),
    ]
    env = worker_environment(os.environ, worker_python) | mark(lease, where["owned"])
    if ray_token_file:
        env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": ray_token_file}
    process = spawn([*guard, "--", *head], env=env, log_path=log)
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
    """End the head and everything of it; returns what is left. Right when called again."""
    ref = ProcessRef(int(where["pid"]), float(where["started_at"])) if "pid" in where else None
    return end(ref, str(where["lease"]), str(where["owned"]), grace_s=grace_s)


def _temp_dir(directory: Path) -> str | None:
    """Where Ray keeps its session: under the lease, if the sockets' paths are short enough there."""
    path = str((directory / "ray").resolve())
    return path if len(path) + _RAY_SOCKET_SUFFIX <= _SOCKET_PATH_LIMIT else None
