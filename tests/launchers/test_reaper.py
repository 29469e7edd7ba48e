"""What a reaper ends, and above all what it leaves alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_arcadia.exceptions import ArcadiaError
from airflow_arcadia.launchers.reaper import SKEW_S, Held, Reaped, reap, why_unheld
from airflow_arcadia.lease import DEFAULT_DURATION_S, Identity, Lease, Use, Warm

NOW = 1_000_000.0
WHO = Identity("dag", "run", "worker")


def held(renewed_ago: float, duration_s: float = 3600.0, **more: object) -> Held:
    lease = Lease("l", WHO, NOW - 9000, NOW - renewed_ago, duration_s)
    return Held("l", replace(lease, **more), NOW - renewed_ago)  # type: ignore[arg-type]


def running(_: Identity) -> str:
    return "running"


@pytest.mark.parametrize(
    ("seen", "state", "why"),
    [
        (held(60), "running", None),
        (held(60), None, None),
        (held(3700), "running", None),  # lapsed by less than clocks may differ by
        (held(3600 + 1201), "running", "its lease lapsed 1201 s ago"),
        (held(3600 + 1201), None, "its lease lapsed 1201 s ago"),
        (held(60), "failed", "its run ended (failed)"),
        (held(60), "success", "its run ended (success)"),
        (held(59), "failed", None),  # it may just be ending: its teardown comes first
        (held(60, released=True), "running", "its lease was released"),
        (held(59, released=True), "running", None),
        (held(-500), "running", None),
        (Held("l", None, NOW - 59), None, None),
        (Held("l", None, NOW - 61), None, "its lease is gone"),
        (Held("l", None, NOW - 3000, readable=False), None, None),
        (Held("l", None, NOW - DEFAULT_DURATION_S - 121, readable=False), None, "cannot be read"),
    ],
)
def test_whether_anybody_holds_a_lease(seen: Held, state: str | None, why: str | None):
    found = why_unheld(seen, lambda _: state, NOW)
    assert found is None if why is None else why in str(found)


@given(
    duration=st.floats(15, 7 * 86400),
    since=st.floats(0, 1),
    skew=st.floats(-1, 1),
)
def test_a_lease_that_is_renewed_is_kept_however_the_clocks_differ(
    duration: float, since: float, skew: float
):
    """It is renewed every third of its duration at the latest; a triggerer may even miss one renewal."""
    tolerance = max(SKEW_S, duration / 3)
    seen = held(since * 2 * duration / 3 + skew * tolerance, duration)
    assert why_unheld(seen, running, NOW) is None


@given(duration=st.floats(15, 7 * 86400), paused=st.floats(0, 1, exclude_max=True))
def test_a_triggerer_that_was_paused_for_less_than_the_lease_loses_nothing(duration: float, paused: float):
    assert why_unheld(held(paused * duration, duration), running, NOW) is None


class FakeBackend:
    """Leases in a list; ``left`` is what their end leaves, an error raises."""

    def __init__(self, *leases: Held, left: dict[str, list[str] | Exception] | None = None) -> None:
        self.leases, self.left = leases, left or {}
        self.ended: list[str] = []
        self.asked: list[str] = []

    def held(self) -> Iterable[Held]:
        return self.leases

    def gpus(self, name: str) -> int:
        self.asked.append(name)
        return 2

    def end(self, held: Held, *, grace_s: float) -> list[str]:
        left = self.left.get(held.name, [])
        if isinstance(left, Exception):
            raise left
        self.ended.append(held.name)
        return left


def named(name: str, seen: Held) -> Held:
    return replace(seen, name=name)


def test_a_sweep_ends_what_nobody_holds_keeps_the_rest_and_counts_gpu_hours():
    backend = FakeBackend(named("alive", held(60)), named("lapsed", held(7200)))
    report = reap(backend, running, NOW)
    assert (backend.ended, report.kept) == (["lapsed"], ["alive"])
    assert report.reaped == [Reaped("lapsed", "its lease lapsed 3600 s ago", 2, 2.0)]
    assert report.gpu_hours == 4.0


def test_a_dry_run_ends_nothing():
    backend = FakeBackend(named("lapsed", held(7200)))
    report = reap(backend, running, NOW, dry_run=True)
    assert ([item.name for item in report.reaped], backend.ended) == (["lapsed"], [])


def test_one_that_cannot_be_ended_does_not_keep_the_others():
    error = ArcadiaError("Forbidden.", what_to_do="Allow it.")
    leases = [named(name, held(7200)) for name in ("a", "b", "c")]
    backend = FakeBackend(*leases, left={"a": error, "b": ["Pod ns/b"]})
    report = reap(backend, running, NOW)
    assert backend.ended == ["b", "c"]
    assert "Forbidden." in report.errors["a"]
    assert report.reaped[0].left == ("Pod ns/b",)


def warm_worker(renewed_ago: float, *, used: bool = False) -> Held:
    who = Identity("", "0123456789abcdef", "warm-tiny", 0)
    uses = (Use("run", NOW - renewed_ago, 600.0, 600.0),) if used else ()
    warm = Warm("0123456789abcdef", 1, NOW + 9000, kept_until=NOW - renewed_ago + 600.0, uses=uses)
    return Held("w", Lease("w", who, NOW - 9000, NOW - renewed_ago, 600.0, warm=warm), NOW - renewed_ago)


def test_a_warm_worker_is_of_no_run_and_is_kept_until_its_time_is_over():
    def ended(_: Identity) -> str:
        raise AssertionError("no run is to be asked for")

    assert why_unheld(warm_worker(500), ended, NOW) is None
    assert "lapsed 300 s ago" in str(why_unheld(warm_worker(900), ended, NOW))
    report = reap(
        FakeBackend(named("idle", warm_worker(300)), named("used", warm_worker(300, used=True))), ended, NOW
    )
    assert (report.kept, report.warm, report.reaped) == (["idle", "used"], ["idle"], [])
