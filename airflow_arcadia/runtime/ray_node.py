"""A vLLM driver must run on a node of the Ray cluster: find this host's, or make it one."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import psutil

from airflow_arcadia.config import DASHBOARD_PORT
from airflow_arcadia.exceptions import RayClusterError, RayClusterUnreachableError
from airflow_arcadia.processes import ray_environment
from airflow_arcadia.ray_dashboard import RayDashboard, RayNode
from airflow_arcadia.runtime.log import say
from airflow_arcadia.runtime.supervisor import start_child
from airflow_arcadia.worker import PlacedWorker

JOIN_TIMEOUT_S = 60.0
_PATIENCE_S = 5.0
_POLL_S = 0.2


def local_node(nodes: Iterable[RayNode], addresses: set[str]) -> str | None:
    """Address of the alive node that runs on this host, if there is one."""
    return next((node.ip for node in nodes if node.alive and node.ip in addresses), None)


def join(spec: PlacedWorker, env: Mapping[str, str]) -> tuple[str, subprocess.Popen[bytes] | None]:
    """This host's node address, and the raylet started for it, if the host was not a node yet.

    Raises :class:`RayClusterError` when the node does not appear among the cluster's.
    """
    addresses = _local_addresses()
    node = local_node(_nodes(spec, patience_s=_PATIENCE_S), addresses)
    if node is not None:
        say(f"this host is Ray node {node} already")
        return node, None
    say(f"joining the Ray cluster at {spec.ray_address}")
    raylet = start_child(join_argv(spec), ray_environment(env) | auth_environment(spec, env))
    deadline = time.monotonic() + JOIN_TIMEOUT_S
    while time.monotonic() < deadline and raylet.poll() is None:
        if node := local_node(_nodes(spec, patience_s=deadline - time.monotonic()), addresses):
            say(f"this host joined as Ray node {node}")
            return node, raylet
        time.sleep(_POLL_S)
    why = "ended" if raylet.poll() is not None else f"did not appear within {JOIN_TIMEOUT_S:.0f} s"
    raylet.kill()
    raise RayClusterError(
        f"This host's raylet {why} when joining the Ray cluster at {spec.ray_address}.",
        what_to_do="See the lines above: Ray and Python versions, network and token must fit.",
    )


def auth_environment(spec: PlacedWorker, env: Mapping[str, str]) -> dict[str, str]:
    """How Ray's processes of this worker authenticate at the cluster.

    Left alone, Ray uses a token that it happens to find in the user's home, whatever the cluster wants.
    """
    return {"RAY_AUTH_MODE": "token" if spec.ray_token_file else env.get("RAY_AUTH_MODE", "disabled")}


def join_argv(spec: PlacedWorker) -> list[str]:
    """Words that make this host a node of the Ray cluster."""
    ray = str(Path(sys.executable).with_name("ray"))
    # --block: the raylet stays our child, and ends with us.
    argv = [ray, "start", f"--address={spec.ray_address}", "--block", "--disable-usage-stats"]
    # Left alone, Ray counts every GPU it sees, and a pod may see more than it was given: CUDA's images ask
    # the container runtime for all. Those of other pods would then be registered twice. A pod's own GPUs do
    # join, for the model runs in Ray's actors only; a pod without any is a node that runs the server alone.
    return argv if spec.node_gpus is None else [*argv, f"--num-gpus={spec.node_gpus}"]


def _nodes(spec: PlacedWorker, *, patience_s: float) -> tuple[RayNode, ...]:
    """The cluster's nodes; a dashboard that does not answer is asked again for ``patience_s`` seconds."""
    host = (spec.ray_address or "").rpartition(":")[0]
    dashboard = RayDashboard(spec.ray_dashboard_url or f"http://{host}:{DASHBOARD_PORT}", spec.ray_token_file)
    deadline = time.monotonic() + patience_s
    while True:
        try:
            return asyncio.run(dashboard.nodes())
        except RayClusterUnreachableError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_POLL_S)


def _local_addresses() -> set[str]:
    return {address.address for card in psutil.net_if_addrs().values() for address in card}
