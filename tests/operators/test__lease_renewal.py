"""Leases stay renewed while a task's thread and event loop are busy, and a failure is never silent."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest

from airflow_arcadia.exceptions import ArcadiaError
from airflow_arcadia.lease import Identity, Lease
from airflow_arcadia.lease_store import LeaseError, no_such_lease
from airflow_arcadia.operators._lease_renewal import LeaseRenewal
from tests.conftest import wait_for


class FakeLeases:
    """Counts renewals; fails with the errors it is given, one a call."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.renewed: list[str] = []

    async def renew(self, name: str, now: float) -> None:
        if self.errors:
            raise self.errors.pop(0)
        self.renewed.append(name)

    def reserve(self, identity: Identity, now: float, duration_s: float = 0) -> Lease:
        raise NotImplementedError

    def read(self, name: str) -> Lease | None:
        raise NotImplementedError

    def update(self, name: str, change: Callable[[Lease], Lease]) -> Lease:
        raise NotImplementedError


def test_every_lease_is_renewed_again_and_again():
    leases = FakeLeases()
    with LeaseRenewal(leases, ["b", "a", "b"], interval_s=0.001):
        wait_for(lambda: len(leases.renewed) >= 6, 20, "three rounds")
    assert leases.renewed[:4] == ["a", "b", "a", "b"]


def test_a_store_that_is_away_is_logged_and_asked_again(caplog: pytest.LogCaptureFixture):
    away = ArcadiaError("The API server is away.", what_to_do="Wait.")
    leases = FakeLeases(away, OSError("no route"))
    with caplog.at_level(logging.ERROR), LeaseRenewal(leases, ["a"], interval_s=0.001) as renewal:
        wait_for(lambda: bool(leases.renewed), 20, "a renewal")
    assert renewal.error is None
    assert "Lease a was not renewed" in caplog.text
    assert "The API server is away." in caplog.text


@pytest.mark.parametrize("error", [no_such_lease("a"), RuntimeError("a fault of ours")])
def test_what_no_waiting_mends_is_kept_as_the_reason_to_stop(error: Exception):
    with LeaseRenewal(FakeLeases(error), ["a"], interval_s=0.001) as renewal:
        wait_for(lambda: renewal.error is not None, 20, "the error")
    assert renewal.error is error
    assert isinstance(error, (LeaseError, RuntimeError))
