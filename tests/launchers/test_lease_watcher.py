"""What the lease watcher knows between two looks: renewals by its own clock."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest

from airflow_arcadia.launchers.lease_watcher import Watches, sweep
from airflow_arcadia.launchers.reaper import SETTLING_S, Held
from airflow_arcadia.lease import DEFAULT_DURATION_S, Identity, Lease
from tests.launchers.test_reaper import FakeBackend

NOW = 1_000_000.0
LEASE = Lease("l", Identity("d", "r", "g"), NOW, NOW, 60.0)
LONG = replace(LEASE, duration_s=3600.0)


def held(lease: Lease | None, *, readable: bool = True) -> Held:
    return Held("l", lease, NOW, readable)


def test_a_lease_that_nobody_renews_ends_after_its_duration():
    watches = Watches()
    assert watches.why(held(LEASE), NOW) is None
    assert watches.why(held(LEASE), NOW + 59) is None
    assert watches.why(held(LEASE), NOW + 61) == "its lease lapsed 1 s ago"


@pytest.mark.parametrize("skew", [-3600.0, 50.0])
def test_renewals_count_from_when_they_were_seen(skew: float):
    """Airflow's clock is an hour ahead, or behind by less than the lease at the first look."""
    watches, ahead = Watches(), -skew
    for step in range(20):
        lease = replace(LEASE, renewed_at=NOW + 20 * step + ahead)
        assert watches.why(held(lease), NOW + 20 * step) is None


def test_a_lease_that_cannot_be_read_lapses_by_its_last_reading():
    watches = Watches()
    watches.why(held(LEASE), NOW)
    assert watches.why(held(None, readable=False), NOW + 59) is None
    assert "lapsed" in str(watches.why(held(None, readable=False), NOW + 60))


def test_one_that_was_never_read_has_the_default_duration():
    watches = Watches()
    assert watches.why(held(None, readable=False), NOW) is None
    assert watches.why(held(None, readable=False), NOW + DEFAULT_DURATION_S - 1) is None
    assert watches.why(held(None, readable=False), NOW + DEFAULT_DURATION_S)


@pytest.mark.parametrize("now_gone", [None, replace(LONG, released=True)])
def test_a_teardown_under_way_is_given_time(now_gone: Lease | None):
    watches = Watches()
    watches.why(held(LONG), NOW)
    assert watches.why(held(now_gone), NOW + 1) is None
    assert watches.why(held(now_gone), NOW + SETTLING_S) is None
    assert watches.why(held(now_gone), NOW + 1 + SETTLING_S) is not None


def test_a_lease_that_is_gone_from_the_cluster_is_forgotten():
    watches = Watches()
    backend = FakeBackend(held(LEASE))
    sweep(backend, watches, lambda: NOW, grace_s=0)
    backend.leases = ()
    sweep(backend, watches, lambda: NOW + 30, grace_s=0)
    # Reserved again under its name, it is a new one.
    backend.leases = (held(replace(LEASE, renewed_at=NOW + 100)),)
    assert sweep(backend, watches, lambda: NOW + 100, grace_s=0).reaped == []
    assert backend.ended == []


def test_the_time_of_an_outage_in_which_nobody_could_renew_does_not_count():
    watches = Watches(longest_gap_s=20.0)
    backend = FakeBackend(held(LEASE))
    sweep(backend, watches, lambda: NOW, grace_s=0)
    for away in (400, 430):  # the API server was away; those who renew come a moment after the watcher
        assert sweep(backend, watches, lambda now=NOW + away: now, grace_s=0).reaped == []  # type: ignore[misc]
    (ended,) = sweep(backend, watches, lambda: NOW + 460, grace_s=0).reaped
    assert ended.why == "its lease lapsed 0 s ago", "20 s of each of the three gaps count"


def test_a_look_asks_nothing_about_leases_that_are_held():
    backend = FakeBackend(held(LEASE))
    report = sweep(backend, Watches(), lambda: NOW, grace_s=0)
    assert report.kept == ["l"]
    assert backend.asked == []


def test_the_clock_is_read_after_the_leases():
    backend, watches, times = FakeBackend(held(LEASE)), Watches(), iter([NOW, NOW + 15, NOW + 30])
    read: list[str] = []

    class Backend(FakeBackend):
        def held(self) -> Iterable[Held]:
            read.append("leases")
            return backend.leases

    def clock() -> float:
        read.append("clock")
        return next(times)

    sweep(Backend(), watches, clock, grace_s=0)
    assert read == ["leases", "clock"]
