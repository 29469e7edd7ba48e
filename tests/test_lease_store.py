"""Leases as files: reserved once, changed under a lock, never half-written."""

import stat
from concurrent.futures import ThreadPoolExecutor

import pytest

from airflow_arcadia.lease import Identity, Owned
from airflow_arcadia.lease_store import LeaseError, LeaseStore, default_root

IDENTITY = Identity("dag", "run", "worker")


def test_reserving_again_finds_the_same_lease_with_what_it_owns(store: LeaseStore):
    first = store.reserve(IDENTITY, now=100.0)
    store.update(first.name, lambda held: held.record(Owned("worker", "w", "process")))
    again = store.reserve(IDENTITY, now=200.0)
    assert again.name == first.name
    assert again.renewed_at == 200.0
    assert again.find("worker", "w")


def test_a_released_lease_is_reserved_anew(store: LeaseStore):
    name = store.reserve(IDENTITY, now=100.0).name
    store.update(name, lambda held: held.release())
    assert not store.reserve(IDENTITY, now=200.0).released


def test_a_lease_that_is_gone_cannot_be_changed(store: LeaseStore):
    with pytest.raises(LeaseError, match="does not exist"):
        store.update("worker-0", lambda held: held)
    assert store.names() == []


def test_removing_twice_is_right(store: LeaseStore):
    name = store.reserve(IDENTITY, now=100.0).name
    (store.directory(name) / "api-key").write_text("secret")
    store.remove(name)
    store.remove(name)
    assert store.read(name) is None
    assert not (store.root / name).exists()


def test_a_lease_that_cannot_be_read_is_not_absent(store: LeaseStore):
    name = store.reserve(IDENTITY, now=100.0).name
    store.file(name).write_text("{")
    with pytest.raises(ValueError):  # noqa: PT011 - json's own error
        store.read(name)


def test_only_its_owner_may_look_into_a_leases_directory(store: LeaseStore):
    name = store.reserve(IDENTITY, now=100.0).name
    assert stat.S_IMODE(store.directory(name).stat().st_mode) == 0o700


def test_changes_at_the_same_time_are_all_kept(store: LeaseStore):
    name = store.reserve(IDENTITY, now=100.0).name

    def record(number: int) -> None:
        store.update(name, lambda held: held.record(Owned("worker", str(number), "process")))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(record, range(40)))
    lease = store.read(name)
    assert lease is not None
    assert len(lease.owned) == 40


def test_the_root_is_beside_airflows_files(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("ARCADIA_STATE_DIR", raising=False)
    monkeypatch.setenv("AIRFLOW_HOME", "/srv/airflow")
    assert str(default_root()) == "/srv/airflow/arcadia"
    monkeypatch.setenv("ARCADIA_STATE_DIR", "/srv/leases")
    assert str(default_root()) == "/srv/leases"
