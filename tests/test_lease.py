"""Lease arithmetic, with the clock passed in."""

import json
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from airflow_arcadia.lease import MAX_NAME, Identity, Lease, Owned

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
