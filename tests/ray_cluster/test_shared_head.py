"""A local Ray head that two runs use ends with the last of them, whichever made it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

import pytest

from airflow_arcadia.config import RayCluster
from airflow_arcadia.launchers.reap_backends import LocalBackend
from airflow_arcadia.launchers.reaper import reap
from airflow_arcadia.launchers.teardown import teardown
from airflow_arcadia.lease import Identity, Lease, Owned
from airflow_arcadia.lease_store import LeaseStore
from airflow_arcadia.processes import end, find_marked, mark, spawn
from airflow_arcadia.ray_cluster import local
from airflow_arcadia.ray_cluster.local import LocalRayBackend
from tests.conftest import wait_for

ADDRESS = "127.0.0.1:16379"
CLUSTER = RayCluster("here", ADDRESS)


@pytest.fixture
def other(store: LeaseStore, lease: Lease) -> Iterator[Lease]:
    reserved = store.reserve(Identity("dag", lease.identity.run_id, "other"), time.time())
    yield reserved
    end(None, reserved.name, grace_s=0)


@pytest.fixture
def head(store: LeaseStore, lease: Lease) -> Lease:
    """The lease that started a head: a stand-in for Ray under the real supervisor."""
    folder, owned = store.directory(lease.name), "ray_cluster/here"
    argv = [sys.executable, "-m", "airflow_arcadia.runtime.supervisor"]
    argv += ["--lease-file", str(store.file(lease.name)), "--shared", "--lease-poll", "0.1", "--grace", "1"]
    up = folder / "up"
    code = "import sys, time; open(sys.argv[1], 'w').close(); time.sleep(600)"
    env = mark(lease.name, owned) | {"PYTHONPATH": ":".join(sys.path)}
    ref = spawn([*argv, "--", sys.executable, "-c", code, str(up)], env=env, log_path=folder / "head.log")
    (folder / local._ADDRESS_FILE).write_text(ADDRESS)
    where = {"lease": lease.name, "owned": owned, "pid": ref.pid, "started_at": ref.started_at}
    store.update(lease.name, lambda held: held.record(Owned("ray_cluster", "here", local.LAUNCHER, where)))
    wait_for(up.exists, 20, "the head")
    return lease


def use(store: LeaseStore, user: Lease) -> None:
    LocalRayBackend(store, sys.executable).use(user.name, CLUSTER)


def running(_: Identity) -> str:
    return "running"


def test_its_makers_teardown_leaves_it_to_the_other_run_whose_teardown_ends_it(
    store: LeaseStore, head: Lease, other: Lease
):
    use(store, other)
    assert teardown(store, head.name, {}, grace_s=5) == []
    log = store.directory(head.name) / "head.log"
    wait_for(lambda: f"still used under {other.name}" in log.read_text(), 20, "the supervisor to go on")
    assert reap(LocalBackend(store, {}), running, time.time() + 120).reaped == []
    assert find_marked(head.name)
    assert teardown(store, other.name, {}, grace_s=5) == []
    assert find_marked(head.name) == []
    assert store.names() == []


def test_the_other_runs_teardown_leaves_it_to_its_maker(store: LeaseStore, head: Lease, other: Lease):
    use(store, other)
    assert teardown(store, other.name, {}, grace_s=5) == []
    assert find_marked(head.name)
    assert teardown(store, head.name, {}, grace_s=5) == []
    assert find_marked(head.name) == []
    assert store.names() == []


def test_it_ends_by_itself_once_no_lease_holds(store: LeaseStore, head: Lease, other: Lease):
    use(store, other)
    store.update(head.name, lambda held: held.release())
    store.update(other.name, lambda held: held.release())
    wait_for(lambda: not find_marked(head.name), 20, "the head to end")


def test_a_head_at_another_address_is_not_kept(store: LeaseStore, head: Lease, other: Lease):
    elsewhere = RayCluster("there", "127.0.0.1:26379")
    LocalRayBackend(store, sys.executable).use(other.name, elsewhere)
    assert store.users(head.name, time.time()) == []
    assert teardown(store, head.name, {}, grace_s=5) == []
    assert find_marked(head.name) == []


def test_a_user_whose_lease_cannot_be_read_counts_and_one_that_is_gone_does_not(
    store: LeaseStore, head: Lease, other: Lease
):
    use(store, other)
    store.file(other.name).write_text("{")
    assert store.users(head.name, time.time()) == [other.name]
    assert store.users(head.name, time.time() + 4000) == []
    store.remove(other.name)
    assert store.users(head.name, time.time()) == []


def test_a_maker_that_is_torn_down_meanwhile_is_no_obstacle(store: LeaseStore, head: Lease, other: Lease):
    store.file(head.name).unlink()
    teardown(store, head.name, {}, grace_s=5)
    use(store, other)
    assert store.names() == [other.name]
