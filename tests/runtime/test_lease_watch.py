"""Until when a lease holds, seen from the process that runs under it."""

from __future__ import annotations

import threading
import time

import pytest

from airflow_arcadia.lease import DEFAULT_DURATION_S, Lease
from airflow_arcadia.lease_store import LeaseStore
from airflow_arcadia.runtime.lease_watch import LeaseWatch, remove_warm_lease


class Clock:
    """Seconds since the epoch, as the test sets them."""

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_why_a_lease_no_longer_holds(store: LeaseStore, lease: Lease, clock: Clock):
    file = store.file(lease.name)
    watched = LeaseWatch(file, poll_s=0, clock=clock)
    assert LeaseWatch(None, poll_s=0).check() is None
    assert watched.check() is None
    clock.now = lease.expires_at + 10
    assert "lapsed 10 s ago" in str(watched.check())
    clock.now = lease.created_at
    store.update(lease.name, lambda held: held.release())
    assert watched.check() == "its lease was released"
    store.remove(lease.name)
    assert watched.check() == "its lease is gone"


def test_an_unreadable_lease_counts_until_it_lapses_by_its_last_good_reading(
    store: LeaseStore, lease: Lease, clock: Clock, capsys: pytest.CaptureFixture[str]
):
    watched = LeaseWatch(store.file(lease.name), poll_s=0, clock=clock)
    assert watched.check() is None
    store.file(lease.name).write_text("{")
    clock.now = lease.expires_at - 1
    assert watched.check() is None
    assert watched.check() is None
    assert capsys.readouterr().out.count("the lease cannot be read (Expecting") == 1
    clock.now = lease.expires_at
    assert "cannot be read" in str(watched.check())


def test_a_lease_that_was_never_readable_counts_for_as_long_as_one_does_by_default(
    store: LeaseStore, lease: Lease, clock: Clock
):
    store.file(lease.name).write_text("[]")
    watched = LeaseWatch(store.file(lease.name), poll_s=0, clock=clock)
    assert watched.check() is None
    clock.now += DEFAULT_DURATION_S
    assert "cannot be read" in str(watched.check())


def test_a_lease_that_can_be_read_again_counts_as_it_is_now(
    store: LeaseStore, lease: Lease, clock: Clock, capsys: pytest.CaptureFixture[str]
):
    file = store.file(lease.name)
    whole = file.read_text()
    watched = LeaseWatch(file, poll_s=0, clock=clock)
    file.write_text("")
    assert watched.check() is None
    file.write_text(whole)
    assert watched.check() is None
    assert "can be read again" in capsys.readouterr().out


def test_what_ends_under_a_lease_does_not_wait_for_the_teardown_that_waits_for_it(
    store: LeaseStore, lease: Lease
):
    store.update(lease.name, lambda held: held.release())
    ending = threading.Thread(target=remove_warm_lease, args=(store.file(lease.name),), daemon=True)
    with store.locked(lease.name):
        ending.start()
        ending.join(10)
        assert not ending.is_alive()
    assert store.read(lease.name) is not None
