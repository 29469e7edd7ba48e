"""Leases as files: reserved once, changed under a lock, never half-written."""

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from airflow_arcadia.exceptions import ArcadiaConfigError, LeaseError, UnreadableLeaseError
from airflow_arcadia.lease import Identity, Owned
from airflow_arcadia.lease_store import LeaseStore, default_root

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
    with pytest.raises(UnreadableLeaseError, match=f"Lease {name} cannot be read"):
        store.read(name)


def test_a_lease_that_cannot_be_read_is_reserved_anew(store: LeaseStore):
    name = store.reserve(IDENTITY, now=100.0).name
    store.file(name).write_text("{")
    assert store.reserve(IDENTITY, now=200.0).renewed_at == 200.0
    assert store.read(name)


def test_a_directory_that_a_lease_left_behind_is_listed_and_a_strangers_is_not(store: LeaseStore):
    name = store.reserve(IDENTITY, now=100.0).name
    store.file(name).unlink()
    (store.root / "dags").mkdir()
    (store.root / "models-0123456789").mkdir()
    assert store.names() == [name]


def test_a_torn_down_leases_directory_is_not_made_again(store: LeaseStore):
    name = store.reserve(IDENTITY, now=100.0).name
    store.remove(name)
    with pytest.raises(LeaseError, match="does not exist"):
        store.write_secret(name, "api-key", "secret")
    assert not (store.root / name).exists()


def test_secrets_are_readable_by_their_owner_alone_and_never_written_through_a_link(
    store: LeaseStore, tmp_path: Path
):
    name = store.reserve(IDENTITY, now=100.0).name
    other = tmp_path / "somebody's"
    other.write_text("theirs")
    (store.directory(name) / "api-key").symlink_to(other)
    path = store.write_secret(name, "api-key", "first")
    path.chmod(0o644)
    path = store.write_secret(name, "api-key", "second")
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("second", 0o600)
    assert other.read_text() == "theirs"


def test_a_link_in_place_of_a_lease_is_not_followed(store: LeaseStore, tmp_path: Path):
    name = store.reserve(IDENTITY, now=100.0).name
    real = tmp_path / "elsewhere.json"
    store.file(name).rename(real)
    store.file(name).symlink_to(real)
    with pytest.raises(OSError, match="symbolic"):
        store.read(name)
    store.remove(name)
    (store.root / name).symlink_to(tmp_path)
    with pytest.raises(ArcadiaConfigError, match="not a directory of this user's"):
        store.reserve(IDENTITY, now=200.0)
    assert real.exists()


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", "None "])
def test_what_is_not_a_leases_name_never_becomes_a_path(store: LeaseStore, name: str):
    store.reserve(IDENTITY, now=100.0)
    with pytest.raises(ArcadiaConfigError, match="not the name of a lease"):
        store.remove(name)
    assert store.names()


def test_only_its_owner_may_look_into_a_leases_directory(store: LeaseStore):
    name = store.reserve(IDENTITY, now=100.0).name
    modes = [
        stat.S_IMODE(path.stat().st_mode) for path in (store.root, store.directory(name), store.file(name))
    ]
    assert modes == [0o700, 0o700, 0o600]


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
