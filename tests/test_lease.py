"""Lease arithmetic, with the clock passed in."""

import json
import math
import re
from dataclasses import replace
from random import Random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from airflow_arcadia.exceptions import ArcadiaConfigError, UnreadableLeaseError
from airflow_arcadia.lease import (
    DEFAULT_DURATION_S,
    MAX_DURATION_S,
    MAX_NAME,
    MIN_DURATION_S,
    Identity,
    Lease,
    LeaseWatch,
    Owned,
    parse_duration,
)

IDENTITY = Identity("dag", "manual__2026", "qwen")


def held(at: float = 100.0) -> Lease:
    return Lease(IDENTITY.lease_name, IDENTITY, created_at=at, renewed_at=at, duration_s=60.0)


def test_a_lease_lapses_when_nobody_renews_it():
    assert not held().lapsed(159.9)
    assert held().lapsed(160.0)
    assert not held().renew(150.0).lapsed(209.0)


def test_a_clock_that_went_backwards_does_not_shorten_it():
    assert held().renew(50.0).expires_at == held().expires_at


def test_a_released_lease_has_lapsed_at_once():
    assert held().release().lapsed(100.0)


def test_recording_again_replaces_the_record():
    lease = held().record(Owned("worker", "w", "process")).record(Owned("ray_cluster", "c", "local_head"))
    lease = lease.record(Owned("worker", "w", "process", {"pid": 7}))
    assert len(lease.owned) == 2
    found = lease.find("worker", "w")
    assert found is not None
    assert found.where == {"pid": 7}
    assert lease.find("worker", "x") is None


def test_a_lease_goes_through_json_unchanged():
    lease = held().record(Owned("worker", "w", "process", {"pid": 7}))
    assert Lease.from_dict(json.loads(json.dumps(lease.to_dict()))) == lease


@given(st.text(), st.text(), st.text(), st.integers(-1, 9))
@example("dag", "run", "70b", -1)
@example("dag", "run", "7" * 60, -1)
def test_every_identity_gives_a_name_that_a_service_may_have(dag: str, run: str, group: str, index: int):
    name = Identity(dag, run, group, index).lease_name
    assert re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", name)
    assert len(name) <= MAX_NAME


def test_a_group_is_recognised_in_the_name():
    assert re.fullmatch(r"qwen-[0-9a-f]{10}", IDENTITY.lease_name)
    assert re.fullmatch(r"worker-70b-[0-9a-f]{10}", Identity("dag", "run", "70B").lease_name)


@pytest.mark.parametrize(
    "other",
    [
        Identity("dag2", "manual__2026", "qwen"),
        Identity("dag", "r", "qwen"),
        Identity("dag", "manual__2026", "qwen", 0),
    ],
)
def test_another_run_group_or_map_index_is_another_lease(other: Identity):
    assert other.lease_name != IDENTITY.lease_name


def test_a_lease_of_a_later_version_is_read_and_written_back_whole():
    raw = held().record(Owned("worker", "w", "process", {"pid": 7})).to_dict()
    raw["of_a_later_version"] = 1800
    raw["identity"]["team"] = "search"
    raw["owned"][0]["uid"] = "u"
    lease = Lease.from_dict(raw)
    assert (lease.find("worker", "w"), lease.expires_at) == (
        Owned("worker", "w", "process", {"pid": 7}),
        160.0,
    )
    assert lease.renew(120.0).to_dict()["of_a_later_version"] == 1800


@pytest.mark.parametrize("missing", ["name", "identity", "renewed_at"])
def test_a_lease_without_what_every_lease_has_is_unreadable(missing: str):
    raw = held().to_dict()
    del raw[missing]
    with pytest.raises(UnreadableLeaseError, match=r"cannot be read.*Run the teardown"):
        Lease.from_dict(raw)


@pytest.mark.parametrize("raw", [[], "text", None, {"name": "l", "identity": 1, "renewed_at": 1.0}])
def test_json_that_is_not_a_lease_is_unreadable(raw: object):
    with pytest.raises(UnreadableLeaseError):
        Lease.from_dict(raw)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [0, -5, 5, 14.9, "soon", None, True, math.nan, math.inf, "1e9"])
def test_durations_that_make_no_sense_are_refused(value: object):
    with pytest.raises(ArcadiaConfigError, match=r"lease_duration is .* 15 to 604800 seconds"):
        parse_duration(value)


@given(st.floats(MIN_DURATION_S, MAX_DURATION_S))
def test_two_renewals_may_fail_before_any_lease_lapses(duration: float):
    assert parse_duration(str(duration)) == duration
    lease = replace(held(), duration_s=duration)
    assert not lease.lapsed(lease.renewed_at + 2 * lease.renewal_interval_s)


TIMES = st.floats(0, 1e6)


@given(st.lists(TIMES, max_size=20), st.randoms(use_true_random=False))
def test_renewals_out_of_order_give_the_latest(times: list[float], random: Random):
    shuffled = list(times)
    random.shuffle(shuffled)
    lease = held(0.0)
    for at in shuffled:
        lease = lease.renew(at)
    assert lease.renewed_at == max([0.0, *times])


@given(skew=st.floats(-1e5, 1e5), looks=st.lists(st.floats(1, 15), min_size=1, max_size=60))
def test_a_renewed_lease_holds_however_wrong_the_watchers_clock_is(skew: float, looks: list[float]):
    """Airflow renews every third of the duration; the watcher looks every few seconds."""
    lease = held(1e6)
    # The first look of a worker comes right after the launch renewed its lease.
    now = 1e6
    watch = LeaseWatch.start(now + skew).read(lease, now + skew)
    if watch.ended(now + skew):
        assert skew >= lease.duration_s  # a first look has nothing to compare with
        return
    watch = watch.read(lease.renew(now + 1), now + 1 + skew)
    lease, now = lease.renew(now + 1), now + 1
    for pause in looks:
        now += pause
        if now - lease.renewed_at >= lease.renewal_interval_s:
            lease = lease.renew(now)
        watch = watch.read(lease, now + skew)
        assert watch.ended(now + skew) is None


@given(skew=st.floats(-1e5, 1e5), pause=st.floats(0, 1e5))
def test_a_lease_that_nobody_renews_ends_one_duration_after_the_last_renewal_was_seen(
    skew: float, pause: float
):
    lease = held(1e6)
    seen = 1e6 + skew
    watch = LeaseWatch.start(seen).read(lease, seen).read(lease.renew(1e6 + 1), seen)
    later = seen + pause
    ended = watch.read(lease.renew(1e6 + 1), later).ended(later) is not None
    assert ended == (later >= seen + lease.duration_s)


@given(st.lists(st.sampled_from(["unreadable", "same"]), max_size=30), st.floats(0.1, 10))
def test_a_lease_that_cannot_be_read_lapses_by_its_last_reading(looks: list[str], pause: float):
    lease, now = held(100.0), 100.0
    watch = LeaseWatch.start(now).read(lease, now)
    for look in looks:
        now += pause
        if look == "same":
            watch = watch.read(lease, now)
        assert (watch.ended(now) is not None) == (now >= 160.0)


def test_a_lease_that_was_never_read_lapses_after_the_default_duration():
    watch = LeaseWatch.start(100.0)
    assert watch.ended(100.0 + DEFAULT_DURATION_S - 1) is None
    assert "lapsed 5 s ago" in str(watch.ended(100.0 + DEFAULT_DURATION_S + 5))


def test_a_released_or_deleted_lease_ends_at_once():
    watch = LeaseWatch.start(100.0).read(held(), 100.0)
    assert watch.read(held().release(), 101.0).ended(101.0) == "its lease was released"
    assert watch.read(None, 101.0).ended(101.0) == "its lease is gone"


def test_a_watcher_that_was_paused_reads_before_it_decides():
    watch = LeaseWatch.start(100.0).read(held(), 100.0)
    assert watch.read(held().renew(5_000.0), 5_001.0).ended(5_001.0) is None
