"""The leases of this machine as a reaper sees and ends them: with real processes."""

from __future__ import annotations

import time
from pathlib import Path

from airflow_arcadia.launchers.reap_backends import LocalBackend
from airflow_arcadia.launchers.reaper import reap
from airflow_arcadia.lease import Identity, Lease
from airflow_arcadia.lease_store import LeaseStore
from airflow_arcadia.processes import find_marked, mark, spawn
from tests.conftest import wait_for

SLEEP = ["/bin/sleep", "600"]
LATER = 10_000.0


def start(store: LeaseStore, name: str, log: Path) -> None:
    env = mark(name, "worker/w") | {"NUMBER_GPUS": "2", "ARCADIA_WORKER": "w"}
    env |= {"ARCADIA_LEASE_FILE": str(store.file(name))}
    for _ in range(2):  # a worker is more than one process
        spawn(SLEEP, env=env, log_path=log)
    # A program's environment cannot be read yet at the moment it begins.
    wait_for(lambda: len(find_marked(name)) == 2, 10, "both processes to carry their mark")


def running(_: Identity) -> str:
    return "running"


def test_a_lapsed_lease_is_ended_with_its_worker_and_one_that_is_held_is_not(
    store: LeaseStore, lease: Lease, tmp_path: Path
):
    start(store, lease.name, tmp_path / "log")
    backend = LocalBackend(store, {})
    report = reap(backend, running, time.time(), grace_s=5)
    assert report.kept == [lease.name]
    assert len(find_marked(lease.name)) == 2
    report = reap(backend, running, time.time() + LATER, grace_s=5)
    assert [(item.name, item.gpus, item.left) for item in report.reaped] == [(lease.name, 2, ())]
    assert find_marked(lease.name) == []
    assert store.names() == []
    assert not (store.root / lease.name).exists()


def test_a_lease_that_cannot_be_read_is_ended_once_it_has_not_changed_for_long(
    store: LeaseStore, lease: Lease, tmp_path: Path
):
    start(store, lease.name, tmp_path / "log")
    store.file(lease.name).write_text("{")
    backend = LocalBackend(store, {})
    assert reap(backend, running, time.time()).kept == [lease.name]
    assert reap(backend, running, time.time() + LATER).reaped
    assert find_marked(lease.name) == []


def test_a_directory_without_a_lease_goes_and_a_strangers_directory_stays(store: LeaseStore, lease: Lease):
    stranger = store.root / "dags"
    stranger.mkdir()
    store.file(lease.name).unlink()
    reap(LocalBackend(store, {}), running, time.time() + LATER)
    assert [path.name for path in store.root.iterdir()] == ["dags"]


def test_processes_of_a_lease_that_is_gone_are_found_and_those_of_another_store_are_left(
    store: LeaseStore, lease: Lease, tmp_path: Path
):
    start(store, lease.name, tmp_path / "log")
    store.remove(lease.name)
    other = LocalBackend(LeaseStore(tmp_path / "other"), {})
    assert reap(other, running, time.time() + LATER).reaped == []
    assert len(find_marked(lease.name)) == 2
    report = reap(LocalBackend(store, {}), running, time.time() + LATER)
    assert [(item.name, item.why) for item in report.reaped] == [(lease.name, "its lease is gone")]
    assert find_marked(lease.name) == []


def test_a_lease_that_was_reserved_anew_meanwhile_is_left_alone(
    store: LeaseStore, lease: Lease, tmp_path: Path
):
    backend = LocalBackend(store, {})
    seen = next(iter(backend.held()))
    store.update(lease.name, lambda held: held.release())
    store.reserve(lease.identity, time.time() + 1)
    start(store, lease.name, tmp_path / "log")
    assert backend.end(seen, grace_s=0) == []
    assert len(find_marked(lease.name)) == 2
    held = store.read(lease.name)
    assert held is not None
    assert not held.released
