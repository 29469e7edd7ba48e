"""Provisioning against real Ray heads: what is usable, what is not, how fast it is said."""

from __future__ import annotations

import asyncio
import dataclasses
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_arcadia.config import ArcadiaConfig, RayCluster
from airflow_arcadia.exceptions import (
    ArcadiaConfigError,
    RayAuthenticationError,
    RayClusterBusyError,
    RayClusterUnfitError,
    RayClusterUnreachableError,
)
from airflow_arcadia.launchers.teardown import teardown
from airflow_arcadia.lease import Lease
from airflow_arcadia.lease_store import LeaseStore
from airflow_arcadia.preflight import Versions
from airflow_arcadia.processes import find_marked
from airflow_arcadia.ray_cluster.local import LocalRayBackend, worker_versions
from airflow_arcadia.ray_cluster.provision import provision
from airflow_arcadia.ray_dashboard import RayDashboard
from tests.ray_cluster.real_ray import RealRay, real_ray, unused_cluster

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def head(worker_python: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealRay]:
    with real_ray(tmp_path_factory.mktemp("ray"), worker_python) as running:
        yield running


@pytest.fixture(scope="module")
def guarded(worker_python: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealRay]:
    folder = tmp_path_factory.mktemp("guarded")
    token = folder / "token"
    token.write_text("a-token-of-the-tests")
    with real_ray(folder, worker_python, token_file=str(token)) as running:
        yield running


@pytest.fixture
def ask(store: LeaseStore, lease: Lease, worker_python: str):
    """``provision`` with what every call here shares."""

    def call(config: ArcadiaConfig, ray_cluster: int | str = 0, num_gpus: int = 2, **more):
        python = more.pop("worker_python", worker_python)
        backend = LocalRayBackend(store, python, more.pop("ray_token_file", None))
        return provision(config, ray_cluster, num_gpus, lease=lease.name, backend=backend, **more)

    return call


def test_a_cluster_with_enough_free_gpus_is_handed_out(ask, head: RealRay, worker_python: str):
    connection = ask(head.config)
    assert connection.address == head.cluster.head_address
    assert (connection.gpus_total, connection.gpus_free, connection.created) == (2.0, 2.0, False)
    assert Versions(connection.ray_version, connection.python_version) == worker_versions(worker_python)


def test_more_gpus_than_it_has_is_said_within_two_seconds(ask, head: RealRay):
    worker_versions.cache_clear()
    began = time.monotonic()
    with pytest.raises(RayClusterUnfitError, match="it has 2 GPUs, NUMBER_GPUS asks for 3"):
        ask(head.config, num_gpus=3)
    assert time.monotonic() - began < 2.0


@pytest.mark.parametrize(
    ("versions", "said"), [("2.59.0 3.11.7", "worker Ray 2.59.0"), ("2.60.0 3.11.1", "worker Python 3.11.1")]
)
def test_another_version_of_the_worker_is_refused(
    ask, head: RealRay, tmp_path: Path, versions: str, said: str
):
    # Another environment cannot be had in a test: its Python's answer stands for it.
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho {versions}\n")
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    with pytest.raises(RayClusterUnfitError, match=said):
        ask(head.config, worker_python=str(python))


def test_a_worker_python_without_ray_is_named(ask, head: RealRay):
    with pytest.raises(ArcadiaConfigError, match=r"/nowhere/python.*worker_python"):
        ask(head.config, worker_python="/nowhere/python")


def test_nothing_at_the_address_is_said_within_two_seconds(ask):
    cluster = unused_cluster()
    began = time.monotonic()
    with pytest.raises(RayClusterUnreachableError, match=cluster.dashboard_url):
        ask(ArcadiaConfig(ray_clusters=(cluster,)))
    assert time.monotonic() - began < 2.0


def test_a_wrong_head_address_is_told_from_a_wrong_dashboard(ask, head: RealRay):
    wrong = dataclasses.replace(head.cluster, head_address=unused_cluster().head_address)
    with pytest.raises(RayClusterUnreachableError, match=f"headAddress {wrong.head_address}"):
        ask(ArcadiaConfig(ray_clusters=(wrong,)))


def test_a_cluster_with_a_token_takes_the_right_one(ask, guarded: RealRay):
    assert ask(guarded.config, ray_token_file=guarded.token_file).gpus_free == 2.0


def test_a_missing_or_wrong_token_is_told_apart(ask, guarded: RealRay, tmp_path: Path):
    with pytest.raises(RayAuthenticationError, match="no token was sent"):
        ask(guarded.config)
    (tmp_path / "wrong").write_text("wrong")
    with pytest.raises(RayAuthenticationError, match="the token sent is wrong"):
        ask(guarded.config, ray_token_file=str(tmp_path / "wrong"))


def test_auto_takes_the_cluster_that_fits(ask, head: RealRay, guarded: RealRay):
    both = ArcadiaConfig(ray_clusters=(unused_cluster("away"), guarded.cluster, head.cluster))
    assert ask(both, "auto").index == 2
    with pytest.raises(RayClusterBusyError, match="it has 2 GPUs, NUMBER_GPUS asks for 9"):
        ask(both, "auto", 9)


def test_a_local_head_is_created_found_again_and_ends_with_its_lease(ask, store: LeaseStore, lease: Lease):
    config = ArcadiaConfig(ray_clusters=(unused_cluster(),))
    made = ask(config, create="if_missing", ray_cluster_spec={"num_gpus": 4})
    assert (made.created, made.gpus_total) == (True, 4.0)
    pids = {process.pid for process in find_marked(lease.name)}
    again = ask(config, create="if_missing")
    assert again.created
    held = store.read(lease.name)
    assert held is not None
    assert held.owned[0].where["pid"] in pids
    assert teardown(store, lease.name, {}, grace_s=10) == []
    assert find_marked(lease.name) == []
    assert not asyncio.run(RayDashboard(made.dashboard_url).answers())


def test_no_head_is_created_at_an_address_of_another_machine(ask, lease: Lease):
    # 192.0.2.0/24 is kept for documentation (RFC 5737): nobody answers there.
    config = ArcadiaConfig(ray_clusters=(RayCluster("far", "192.0.2.77:6379"),))
    with pytest.raises(ArcadiaConfigError, match="only be created at a loopback address"):
        ask(config, create="if_missing")
    assert find_marked(lease.name) == []


@pytest.mark.parametrize(
    ("request_", "said"),
    [({"create": "always"}, "create is 'always'"), ({"ray_cluster_spec": {"gpus": 2}}, "unknown key 'gpus'")],
)
def test_a_request_that_makes_no_sense_starts_nothing(ask, lease: Lease, request_: dict, said: str):
    with pytest.raises(ArcadiaConfigError, match=said):
        ask(ArcadiaConfig(ray_clusters=(unused_cluster(),)), **request_)
    assert find_marked(lease.name) == []
