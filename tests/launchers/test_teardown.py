"""Teardown: in order, complete, and honest about what it could not end."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterable, Mapping
from multiprocessing import shared_memory
from pathlib import Path

import pytest

from airflow_arcadia import processes
from airflow_arcadia.launchers.process import ProcessLauncher
from airflow_arcadia.launchers.teardown import teardown
from airflow_arcadia.lease import Lease, Owned
from airflow_arcadia.lease_store import LeaseStore
from airflow_arcadia.ports import free_port
from airflow_arcadia.processes import find_marked, is_alive, mark, shm_files, spawn
from tests.conftest import wait_for

SLEEP = ["/bin/sleep", "600"]


class Stubborn:
    """A launcher that cannot end its worker until it is allowed to."""

    name = "stubborn"

    def __init__(self) -> None:
        self.left = ["pod w"]

    def stop(self, where: Mapping[str, object], *, grace_s: float) -> list[str]:
        return self.left


def start(store: LeaseStore, lease: Lease, kind: str, launcher: str, name: str = "w") -> Owned:
    owned = f"{kind}/{name}"
    log = store.directory(lease.name) / f"{name}.log"
    ref = spawn(SLEEP, env=mark(lease.name, owned), log_path=log)
    where = {
        "lease": lease.name,
        "owned": owned,
        "log": str(log),
        "pid": ref.pid,
        "started_at": ref.started_at,
    }
    item = Owned(kind, name, launcher, where)
    store.update(lease.name, lambda held: held.record(item))
    return item


def test_workers_clusters_and_the_lease_itself_go(store: LeaseStore, lease: Lease):
    start(store, lease, "worker", "process")
    start(store, lease, "ray_cluster", "local_head", "c")
    spawn(SLEEP, env=mark(lease.name, "worker/unrecorded"), log_path=store.directory(lease.name) / "x")
    launchers = {"process": ProcessLauncher(store, "python")}
    assert teardown(store, lease.name, launchers, grace_s=5) == []
    assert find_marked(lease.name) == []
    assert store.names() == []


def test_what_is_left_is_said_and_keeps_the_lease_for_the_next_try(store: LeaseStore, lease: Lease):
    store.update(lease.name, lambda held: held.record(Owned("worker", "w", "stubborn", {})))
    stubborn = Stubborn()
    launchers = {"stubborn": stubborn}
    assert teardown(store, lease.name, launchers, grace_s=0) == ["pod w"]  # type: ignore[arg-type]
    kept = store.read(lease.name)
    assert kept is not None
    assert kept.released
    stubborn.left = []
    assert teardown(store, lease.name, launchers, grace_s=0) == []  # type: ignore[arg-type]
    assert store.names() == []


def test_a_worker_that_was_only_intended_is_no_obstacle(store: LeaseStore, lease: Lease):
    where = {"lease": lease.name, "owned": "worker/w", "log": "nowhere"}
    store.update(lease.name, lambda held: held.record(Owned("worker", "w", "process", where)))
    assert teardown(store, lease.name, {"process": ProcessLauncher(store, "python")}, grace_s=0) == []


@pytest.mark.parametrize("text", ["{", "", "[]", '{"name": "w"}'])
def test_a_lease_that_cannot_be_read_is_torn_down_by_what_carries_its_name(
    store: LeaseStore, lease: Lease, text: str
):
    start(store, lease, "worker", "process")
    start(store, lease, "ray_cluster", "local_head", "c")
    store.file(lease.name).write_text(text)
    assert teardown(store, lease.name, {"process": ProcessLauncher(store, "python")}, grace_s=5) == []
    assert find_marked(lease.name) == []
    assert not (store.root / lease.name).exists()


def test_what_no_lease_names_any_more_may_end_in_order(store: LeaseStore, lease: Lease, tmp_path: Path):
    """A supervisor gets SIGTERM and the time to end its own, though nothing recorded it."""
    code = "import signal, time, sys; from pathlib import Path\n"
    code += "signal.signal(signal.SIGTERM, lambda *_: sys.exit(Path(sys.argv[1]).touch() or 0))\n"
    code += "Path(sys.argv[2]).touch(); time.sleep(600)"
    ended, up = tmp_path / "ended", tmp_path / "up"
    argv = [sys.executable, "-c", code, str(ended), str(up)]
    spawn(argv, env=mark(lease.name, "worker/w"), log_path=store.directory(lease.name) / "w.log")
    wait_for(up.exists, 20, "the worker")
    store.remove(lease.name)
    assert teardown(store, lease.name, {}, grace_s=10) == []
    assert ended.exists()
    assert find_marked(lease.name) == []


def test_a_worker_of_a_launcher_that_is_not_known_is_ended_by_its_marks(store: LeaseStore, lease: Lease):
    start(store, lease, "worker", "of-a-later-version")
    assert teardown(store, lease.name, {}, grace_s=5) == []
    assert find_marked(lease.name) == []


def test_two_teardowns_at_the_same_time_are_both_right(store: LeaseStore, lease: Lease):
    start(store, lease, "worker", "process")
    launchers = {"process": ProcessLauncher(store, "python")}
    results: list[list[str]] = []
    racers = [
        threading.Thread(target=lambda: results.append(teardown(store, lease.name, launchers, grace_s=5)))
        for _ in range(2)
    ]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    assert results == [[], []]
    assert store.names() == []


def test_shared_memory_that_a_killed_worker_left_is_removed(store: LeaseStore, lease: Lease):
    memory = shared_memory.SharedMemory(create=True, size=4096)
    memory.close()
    path = Path(f"/dev/shm/{memory.name}")
    (store.directory(lease.name) / "w.shm").write_text(f"{path}\n")
    assert teardown(store, lease.name, {}, grace_s=0) == []
    assert not path.exists()


def test_shared_memory_is_removed_once_the_rank_that_maps_it_has_ended(
    store: LeaseStore, lease: Lease, monkeypatch: pytest.MonkeyPatch
):
    """Ray ends a rank some moments after its driver, and after it has given its GPUs back."""
    memory = shared_memory.SharedMemory(create=True, size=4096)
    path = f"/dev/shm/{memory.name}"
    looks: list[bool] = []

    def look(pids: Iterable[int]) -> set[str]:
        found = shm_files(pids)
        looks.append(path in found)
        memory.close()
        return found

    monkeypatch.setattr(processes, "shm_files", look)
    (store.directory(lease.name) / "w.shm").write_text(f"{path}\n")
    assert teardown(store, lease.name, {}, grace_s=0) == []
    assert looks == [True, False]
    assert not Path(path).exists()


def test_a_ray_cluster_that_is_gone_holds_nothing(store: LeaseStore, lease: Lease):
    item = start(store, lease, "worker", "process")
    where = {**item.where, "ray_dashboard": f"http://127.0.0.1:{free_port()}"}
    store.update(lease.name, lambda held: held.record(Owned("worker", "w", "process", where)))
    assert teardown(store, lease.name, {"process": ProcessLauncher(store, "python")}, grace_s=5) == []


def test_a_lease_that_never_was_is_torn_down_too(store: LeaseStore):
    assert teardown(store, "never-reserved-0", {}, grace_s=0) == []
    assert not (store.root / "never-reserved-0").exists()


def test_a_stranger_with_the_recorded_pid_survives(store: LeaseStore, lease: Lease):
    item = start(store, lease, "worker", "process")
    stranger = spawn(SLEEP, env={}, log_path=store.directory(lease.name) / "stranger")
    where = {**item.where, "pid": stranger.pid, "started_at": stranger.started_at - 100}
    store.update(lease.name, lambda held: held.record(Owned("worker", "w", "process", where)))
    assert teardown(store, lease.name, {"process": ProcessLauncher(store, "python")}, grace_s=1) == []
    assert is_alive(stranger)
    os.kill(stranger.pid, signal.SIGKILL)
    os.waitpid(stranger.pid, 0)
