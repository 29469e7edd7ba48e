"""A vLLM driver must run on a node of the Ray cluster: find this host's, or make it one."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import psutil

from airflow_arcadia.config import DASHBOARD_PORT
from airflow_arcadia.exceptions import RayClusterError
from airflow_arcadia.runtime.log import say
from airflow_arcadia.runtime.supervisor import start_child
from airflow_arcadia.worker import WorkerSpec

JOIN_TIMEOUT_S = 60.0
_HTTP_TIMEOUT_S = 5.0
_POLL_S = 0.2


def local_node(nodes: Iterable[Mapping[str, Any]], addresses: set[str]) -> str | None:
    """Address of the alive node that runs on this host, if there is one."""
    for node in nodes:
        if node["state"] == "ALIVE" and node["node_ip"] in addresses:
            return str(node["node_ip"])
    return None


def join(spec: WorkerSpec, env: Mapping[str, str]) -> tuple[str, subprocess.Popen[bytes] | None]:
    """This host's node address, and the raylet started for it, if the host was not a node yet.

    Raises :class:`RayClusterError` when the node does not appear among the cluster's.
    """
    addresses = _local_addresses()
    node = local_node(_nodes(spec), addresses)
    if node is not None:
        say(f"this host is Ray node {node} already")
        return node, None
    say(f"joining the Ray cluster at {spec.ray_address}")
    if spec.ray_token_file:
        env = {**env, "RAY_AUTH_MODE": "token"}
    raylet = start_child(join_argv(spec), env)
    deadline = time.monotonic() + JOIN_TIMEOUT_S
    while time.monotonic() < deadline and raylet.poll() is None:
        if node := local_node(_nodes(spec), addresses):
            say(f"this host joined as Ray node {node}")
            return node, raylet
        time.sleep(_POLL_S)
    why = "ended" if raylet.poll() is not None else f"did not appear within {JOIN_TIMEOUT_S:.0f} s"
    raylet.kill()
    raise RayClusterError(
        f"This host's raylet {why} when joining the Ray cluster at {spec.ray_address}.",
        what_to_do="See the lines above: Ray and Python versions, network and token must fit.",
    )


def join_argv(spec: WorkerSpec) -> list[str]:
    """Words that make this host a node of the Ray cluster."""
    ray = str(Path(sys.executable).with_name("ray"))
    # --block: the raylet stays our child, and ends with us.
    argv = [ray, "start", f"--address={spec.ray_address}", "--block", "--disable-usage-stats"]
    # Left alone, Ray counts every GPU it sees, and a pod may see more than it was given: CUDA's images ask
    # the container runtime for all. Those of other pods would then be registered twice. A pod's own GPUs do
    # join, for the model runs in Ray's actors only; a pod without any is a node that runs the server alone.
    return argv if spec.node_gpus is None else [*argv, f"--num-gpus={spec.node_gpus}"]


def _nodes(spec: WorkerSpec) -> list[dict[str, Any]]:
    host = (spec.ray_address or "").rpartition(":")[0]
    base = spec.ray_dashboard_url or f"http://{host}:{DASHBOARD_PORT}"
    request = urllib.request.Request(f"{base}/api/v0/nodes?detail=1")  # noqa: S310 - an http(s) URL of ours
    if spec.ray_token_file:
        token = Path(spec.ray_token_file).read_text(encoding="utf-8").strip()
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=_HTTP_TIMEOUT_S) as response:  # noqa: S310
            found: list[dict[str, Any]] = json.load(response)["data"]["result"]["result"]
    except (urllib.error.URLError, OSError, ValueError, KeyError, TypeError) as error:
        raise RayClusterError(
            f"The nodes of the Ray cluster cannot be read at {base}: {error}.",
            what_to_do="Check that the head's dashboard is up and reachable from the worker.",
        ) from error
    return found


def _local_addresses() -> set[str]:
    return {address.address for card in psutil.net_if_addrs().values() for address in card}
