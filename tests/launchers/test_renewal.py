"""A lease stays renewed while somebody needs its worker, whatever stands in the way meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time

import pytest

from airflow_arcadia.exceptions import LeaseError
from airflow_arcadia.kubernetes.errors import refused, unreachable
from airflow_arcadia.kubernetes.kinds import LEASE
from airflow_arcadia.launchers import renewal
from airflow_arcadia.launchers.renewal import LeaseKeeper, keep_renewed
from airflow_arcadia.lease import Identity, Lease
from airflow_arcadia.lease_store import LeaseStore, no_such_lease
from tests.conftest import wait_for

NAME = "worker-0123456789"


class FakeLeases:
    """Answers renewals in order: a duration, or what to raise; the last again and again."""

    def __init__(self, *answers: float | Exception) -> None:
        self.answers = list(answers)
        self.renewals: list[float] = []

    async def renew(self, name: str, now: float) -> Lease:
        self.renewals.append(now)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return Lease(name, Identity("d", "r", "g"), now, now, answer)


async def run_until(leases: FakeLeases, renewals: int) -> None:
    keeping = asyncio.ensure_future(keep_renewed(leases, NAME))  # type: ignore[arg-type]
    while len(leases.renewals) < renewals and not keeping.done():  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    if keeping.done():
        keeping.result()
    keeping.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await keeping


async def test_it_is_renewed_every_third_of_its_own_duration(monkeypatch: pytest.MonkeyPatch):
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            raise asyncio.CancelledError

    monkeypatch.setattr(renewal.asyncio, "sleep", sleep)
    with pytest.raises(asyncio.CancelledError):
        await keep_renewed(FakeLeases(60.0, 15.0, 3600.0), NAME)  # type: ignore[arg-type]
    assert pauses == [20.0, 5.0, 1200.0]


async def test_an_api_server_that_is_away_is_asked_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(renewal, "RETRY_S", 0.0)
    leases = FakeLeases(unreachable("refused"), OSError("disk"), 0.003)
    with caplog.at_level(logging.WARNING):
        await run_until(leases, 4)
    assert "refused" in caplog.text
    assert "disk" in caplog.text


async def test_a_lease_that_is_gone_or_forbidden_ends_it():
    with pytest.raises(LeaseError):
        await run_until(FakeLeases(LeaseError("gone", what_to_do="")), 2)
    forbidden = refused(403, "u cannot update resource leases", "update", LEASE, "ns")
    with pytest.raises(type(forbidden)):
        await run_until(FakeLeases(forbidden), 2)


def test_a_keeper_renews_beside_blocking_code_until_it_is_left(store: LeaseStore):
    name = store.reserve(Identity("dag", "run", "worker"), 100.0, 0.03).name

    def renewed_after(at: float) -> bool:
        held = store.read(name)
        return held is not None and held.renewed_at > at

    with LeaseKeeper(store, [name]):
        wait_for(lambda: renewed_after(100.0), 10, "a renewal")
        seen = time.time()
        wait_for(lambda: renewed_after(seen), 10, "another one")
    held = store.read(name)
    with LeaseKeeper(store, []):
        assert store.read(name) == held


@pytest.mark.parametrize("error", [no_such_lease(NAME), RuntimeError("a fault of ours")])
def test_what_no_waiting_mends_is_kept_and_logged(error: Exception, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING), LeaseKeeper(FakeLeases(error), [NAME]) as keeper:  # type: ignore[arg-type]
        wait_for(lambda: "no longer renewed" in caplog.text, 10, "the warning")
    assert keeper.error is error
