"""Which node of a Ray cluster is this host's, and what joins with a new one."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from airflow_arcadia.processes import end, mark, spawn, worker_environment
from airflow_arcadia.ray_dashboard import RayDashboard, RayNode
from airflow_arcadia.runtime.ray_node import auth_environment, join_argv, local_node
from airflow_arcadia.worker import PlacedWorker
from tests.conftest import wait_for
from tests.ray_cluster.real_ray import real_ray

NODES = [
    RayNode(f"node-{last}", f"10.0.0.{last}", is_head=False, alive=alive, gpus_total=1.0, gpus_used=0.0)
    for last, alive in ((1, False), (2, True), (3, True))
]


def test_the_alive_node_with_an_address_of_this_host_is_its_own():
    assert local_node(NODES, {"127.0.0.1", "10.0.0.3"}) == "10.0.0.3"


def test_a_dead_node_and_another_hosts_are_not():
    assert local_node(NODES, {"127.0.0.1", "10.0.0.1"}) is None


def test_without_a_token_ray_looks_for_none():
    assert auth_environment(joining("h:6379", None), {}) == {"RAY_AUTH_MODE": "disabled"}
    assert auth_environment(joining("h:6379", None), {"RAY_AUTH_MODE": "k8s"}) == {"RAY_AUTH_MODE": "k8s"}


def test_a_host_that_is_no_pod_joins_with_the_gpus_that_ray_counts():
    assert not [word for word in join_argv(joining("h:6379", None)) if "num-gpus" in word]


@pytest.mark.engine
def test_a_pod_joins_with_its_own_gpus_and_with_no_other(tmp_path: Path, worker_python: str):
    env = worker_environment(os.environ, worker_python) | mark(tmp_path.name, "node")
    with real_ray(tmp_path / "ray", worker_python) as head:
        dashboard = RayDashboard(head.cluster.dashboard_url)
        try:
            for nodes, own, total in ((2, 0, 2.0), (3, 1, 3.0)):
                argv = join_argv(joining(head.cluster.head_address, own))
                argv[0] = str(Path(worker_python).with_name("ray"))
                spawn(argv, env=env, log_path=tmp_path / "raylet.log")
                wait_for(lambda n=nodes: alive(dashboard) == n, 30, "the node to join")
                assert asyncio.run(dashboard.facts()).gpus_total == total
        finally:
            assert end(None, tmp_path.name, grace_s=0) == []


def joining(address: str, own: int | None) -> PlacedWorker:
    return PlacedWorker(name="w", model="m", num_gpus=2, ray_address=address, node_gpus=own)


def alive(dashboard: RayDashboard) -> int:
    return len([node for node in asyncio.run(dashboard.facts()).nodes if node.alive])
