"""Warm workers' arithmetic, with the clock passed in: who uses it, who launches it, when it ends."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from airflow_arcadia import warm
from airflow_arcadia.exceptions import ArcadiaConfigError
from airflow_arcadia.lease import Identity, Lease, LeaseWatch
from airflow_arcadia.warm import MARGIN_S, MAX_KEEP_S, MIN_KEEP_S, RETIRE_AFTER_S, Request, parse_keep_warm

T0 = 1_000_000.0
KEEP_S, DURATION_S = 600.0, 60.0
REQUEST = Request("0123456789abcdef", "tiny")
HANDLE = {"name": "w"}


def run(name: str, now: float = T0, duration_s: float = DURATION_S, keep_s: float = KEEP_S) -> Lease:
    who = Identity("dag", name, "worker")
    return warm.record_use(Lease(name, who, now, now, duration_s), "w", keep_s)


def new(user: str = "a", now: float = T0) -> Lease:
    return REQUEST.new(0, warm.use_of(run(user, now), KEEP_S, now), now)


def used(lease: Lease, user: str, now: float) -> Lease:
    return warm.adopt(lease, warm.use_of(run(user, now), KEEP_S, now), now)


def running(*users: str, now: float = T0) -> Lease:
    """A launched worker with these users."""
    lease = warm.record_handle(new(users[0], now), "w", HANDLE)
    for user in users[1:]:
        lease = used(lease, user, now)
    return lease


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        ("30m", 1800.0),
        ("1h 30m", 5400.0),
        ("1h30m15s", 5415.0),
        ("45 s", 45.0),
        ("0.5H", 1800.0),
        (1800, 1800.0),
        ("1800", 1800.0),
        (timedelta(minutes=5), 300.0),
        ("1d", 86400.0),
        (None, 0.0),
        ("", 0.0),
        ("None", 0.0),
        (0, 0.0),
        (timedelta(0), 0.0),
    ],
)
def test_a_warm_period_is_text_seconds_or_a_timedelta(given: object, seconds: float):
    assert parse_keep_warm(given) == seconds


@pytest.mark.parametrize(
    "wrong", ["soon", "30 minutes", "m30", "-5m", 14, "25h", float("nan"), True, timedelta(days=2), "1h x"]
)
def test_a_warm_period_that_makes_no_sense_is_refused(wrong: object):
    with pytest.raises(ArcadiaConfigError, match=r"keep_warm is .*15 seconds to 24 hours"):
        parse_keep_warm(wrong)


def test_the_lease_of_a_warm_worker_belongs_to_no_run_and_goes_through_json_unchanged():
    lease = running("a", "b")
    assert (lease.identity.dag_id, lease.identity.run_id) == ("", REQUEST.key)
    assert lease.name.startswith("warm-tiny-")
    assert Lease.from_dict(json.loads(json.dumps(lease.to_dict()))) == lease


def test_another_generation_or_key_is_another_lease():
    use = warm.use_of(run("a"), KEEP_S, T0)
    names = {REQUEST.new(n, use, T0).name for n in range(3)} | {Request("x", "tiny").new(0, use, T0).name}
    assert len(names) == 4


def test_the_last_one_out_starts_the_warm_period():
    lease = warm.give_back(running("a", "b"), "a", T0 + 10, keep=True)
    assert warm.others(lease, "", T0 + 10) == ["b"]
    lease = warm.give_back(lease, "b", T0 + 30, keep=True)
    assert (lease.released, lease.expires_at) == (False, T0 + 30 + KEEP_S)
    assert not lease.lapsed(T0 + 30 + KEEP_S - 1)
    assert lease.lapsed(T0 + 30 + KEEP_S)


def test_the_longest_warm_period_that_a_run_asked_for_counts():
    long = warm.adopt(running("a"), warm.use_of(run("b"), 6 * KEEP_S, T0), T0)
    lease = warm.give_back(long, "b", T0, keep=True)
    assert warm.give_back(lease, "a", T0 + 5, keep=True).expires_at == T0 + 6 * KEEP_S


def test_a_worker_that_is_not_fit_ends_with_its_last_run_and_not_before():
    lease = warm.give_back(running("a", "b"), "a", T0, keep=False)
    assert not lease.released
    assert warm.give_back(lease, "b", T0, keep=False).released


def test_giving_back_twice_does_not_end_a_warm_worker():
    lease = warm.give_back(running("a"), "a", T0, keep=True)
    assert warm.give_back(lease, "a", T0 + 1, keep=False) == lease


def test_a_use_that_nobody_renews_lapses_as_a_lease_does():
    lease = running("killed", "b")
    later = T0 + DURATION_S + 1
    lease = warm.renew_use(lease, run("b", T0 + 50), T0 + 50)
    assert warm.others(lease, "b", later) == []
    # Nobody gave it back: the worker ends with the last use.
    assert lease.lapsed(T0 + 50 + DURATION_S)
    assert not lease.lapsed(T0 + 50 + DURATION_S - 1)


def test_a_run_whose_use_lapsed_gets_it_back_while_others_keep_the_worker():
    lease = warm.renew_use(running("paused", "b"), run("b", T0 + 50), T0 + 50)
    later = T0 + DURATION_S + 10
    lease = used(lease, "c", later)
    assert "paused" not in warm.others(lease, "", later)
    lease = warm.renew_use(lease, run("paused", later), later)
    assert set(warm.others(lease, "", later)) == {"paused", "b", "c"}


@pytest.mark.parametrize(
    ("before_end_s", "adopted"), [(MARGIN_S + 0.1, True), (MARGIN_S, False), (0.1, False), (0.0, False)]
)
def test_a_worker_that_is_about_to_end_is_not_adopted(before_end_s: float, adopted: bool):
    idle = warm.give_back(running("a"), "a", T0, keep=True)
    now = idle.expires_at - before_end_s
    assert warm.holds(used(idle, "b", now), "b", now) is adopted


def test_a_run_whose_worker_has_ended_does_not_keep_it_by_asking_again():
    lease = running("a")
    assert warm.holds(used(lease, "a", T0 + DURATION_S - 1), "a", T0 + DURATION_S)
    assert not warm.holds(used(lease, "a", T0 + DURATION_S), "a", T0 + DURATION_S)


def test_a_run_that_is_killed_does_not_shorten_what_another_asked_for():
    idle = warm.give_back(running("a"), "a", T0, keep=True)
    assert used(idle, "killed", T0 + 1).expires_at == T0 + KEEP_S


def test_a_worker_that_is_old_is_not_adopted_and_ends_with_its_last_run():
    old = running("a")
    now = T0 + RETIRE_AFTER_S
    old = warm.renew_use(old, run("a", now), now)
    assert not warm.holds(used(old, "b", now), "b", now)
    assert warm.give_back(old, "a", now, keep=True).released


def test_a_pod_that_must_end_is_adopted_for_half_of_its_time():
    short = Request("k", "tiny", lifetime_s=3600).new(0, warm.use_of(run("a"), KEEP_S, T0), T0)
    assert short.warm is not None
    assert short.warm.retires_at == T0 + 1800


def test_one_run_launches_and_the_others_wait():
    lease = used(new("a"), "b", T0)
    lease = warm.take_launch(warm.take_launch(lease, "b", T0), "a", T0)
    assert (warm.may_launch(lease, "a"), warm.may_launch(lease, "b")) == (True, False)
    lease = warm.record_handle(lease, "w", HANDLE)
    assert warm.launched(lease)
    assert not warm.may_launch(lease, "a")


def test_a_run_that_crashed_before_the_launch_is_replaced_once_its_use_has_ended():
    lease = used(new("crashed"), "b", T0 + 50)
    assert not warm.may_launch(warm.take_launch(lease, "b", T0 + 55), "b")
    assert warm.may_launch(warm.take_launch(lease, "b", T0 + DURATION_S + 1), "b")
    given_back = warm.give_back(lease, "crashed", T0 + 55, keep=False)
    assert warm.may_launch(warm.take_launch(given_back, "b", T0 + 55), "b")


def test_a_released_lease_is_neither_adopted_nor_renewed():
    ended = running("a").release()
    assert not warm.holds(used(ended, "b", T0), "b", T0)
    assert warm.renew_use(ended, run("a", T0 + 9), T0 + 9) == ended


def test_a_worker_with_users_is_not_abandoned():
    left = warm.abandon(running("a", "b"), "b", T0)
    assert (left.released, warm.others(left, "", T0)) == (False, ["a"])
    assert warm.abandon(running("a"), "a", T0).released
    assert warm.abandon(warm.give_back(running("a"), "a", T0, keep=True), "b", T0 + 1).released


def test_a_run_records_one_worker():
    lease = warm.record_use(run("a"), "another", KEEP_S)
    assert lease.warm_name == "another"
    assert len(lease.owned) == 1


def test_who_renews_without_a_name_renews_for_all():
    lease = running("a", "b").renew(T0 + 50)
    assert warm.others(lease, "", T0 + DURATION_S + 20) == ["a", "b"]
    idle = warm.give_back(running("a"), "a", T0, keep=True)
    extended = idle.renew(T0 + 300)
    assert extended.expires_at == T0 + 300 + KEEP_S
    # A use that begins and ends does not shorten it.
    assert (
        warm.give_back(used(extended, "b", T0 + 301), "b", T0 + 302, keep=True).expires_at
        >= T0 + 300 + KEEP_S
    )


class SharedWorker(RuleBasedStateMachine):
    """Runs come, are renewed, go or are killed, the clock runs, and a supervisor watches the lease."""

    @initialize()
    def start(self) -> None:
        self.now = T0
        self.lease = running("r0")
        self.alive = {"r0": T0}
        self.watch = LeaseWatch.start(T0).read(self.lease, T0)
        self.count = 1
        self.promised = 0.0

    def _ended(self) -> bool:
        return self.lease.released or self.lease.lapsed(self.now)

    @rule(seconds=st.floats(0.1, 40))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        for name, renewed in list(self.alive.items()):
            # Whoever is alive renews every third of the lease.
            if self.now - renewed > DURATION_S / 3 and not self._ended():
                self.lease = warm.renew_use(self.lease, run(name, self.now), self.now)
                self.alive[name] = self.now

    @rule()
    def a_run_comes(self) -> None:
        name = f"r{self.count}"
        self.count += 1
        self.lease = used(self.lease, name, self.now)
        if warm.holds(self.lease, name, self.now):
            self.alive[name] = self.now

    @rule(pick=st.randoms(use_true_random=False), keep=st.booleans())
    def a_run_goes(self, pick, keep: bool) -> None:
        if not self.alive:
            return
        name = pick.choice(sorted(self.alive))
        del self.alive[name]
        self.lease = warm.give_back(self.lease, name, self.now, keep=keep)
        if not self.lease.released:
            self.promised = max(self.promised, self.now + KEEP_S)

    @rule(pick=st.randoms(use_true_random=False))
    def a_run_is_killed(self, pick) -> None:
        if self.alive:
            del self.alive[pick.choice(sorted(self.alive))]

    @invariant()
    def a_worker_that_a_living_run_holds_is_never_ended(self) -> None:
        if self.alive:
            assert not self._ended()
            assert set(self.alive) <= set(warm.others(self.lease, "", self.now))

    @invariant()
    def it_ends_when_nobody_needs_it(self) -> None:
        longest = max([self.now + DURATION_S, self.promised])
        assert self.lease.released or self.lease.expires_at <= longest + 1e-3

    @invariant()
    def its_supervisor_sees_the_same(self) -> None:
        self.watch = self.watch.read(self.lease, self.now)
        if self.alive:
            assert self.watch.ended(self.now) is None


TestSharedWorker = SharedWorker.TestCase


@given(st.floats(MIN_KEEP_S, MAX_KEEP_S))
def test_every_warm_period_in_its_limits_is_taken(seconds: float):
    assert parse_keep_warm(repr(seconds)) == pytest.approx(seconds)
