"""A batch in the worker that gets further keeps the worker's lease, with or without Airflow."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from airflow_arcadia.lease import Lease
from airflow_arcadia.lease_store import LeaseStore
from airflow_arcadia.runtime.lease_extension import LeaseExtension
from tests.conftest import wait_for


def renewed_at(store: LeaseStore, lease: Lease) -> float:
    held = store.read(lease.name)
    assert held is not None
    return held.renewed_at


def settled(extension: LeaseExtension) -> None:
    if extension._renewing is not None:
        extension._renewing.join()


def test_progress_renews_the_lease_but_not_more_often_than_every_third_of_it(store: LeaseStore, lease: Lease):
    extension = LeaseExtension(store.file(lease.name))
    extension.renew_when_due()
    wait_for(lambda: renewed_at(store, lease) > lease.renewed_at, 10, "the renewal")
    settled(extension)
    first = renewed_at(store, lease)
    for _ in range(20):
        extension.renew_when_due()
        settled(extension)
    assert renewed_at(store, lease) == first


def test_a_lease_that_was_released_stays_released(store: LeaseStore, lease: Lease):
    store.update(lease.name, lambda held: held.release())
    extension = LeaseExtension(store.file(lease.name))
    extension.renew_when_due()
    settled(extension)
    held = store.read(lease.name)
    assert held is not None
    assert held.released


def test_a_lease_that_is_gone_or_unreadable_is_no_reason_to_stop(
    store: LeaseStore, lease: Lease, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    LeaseExtension(None).renew_when_due()
    store.file(lease.name).write_text("{")
    for path in (store.file(lease.name), tmp_path / "state" / "gone-0123456789" / "lease.json"):
        extension = LeaseExtension(path)
        extension.renew_when_due()
        settled(extension)
    assert capsys.readouterr().out.count("the lease was not renewed") == 2


def test_a_short_lease_is_renewed_again_in_time(store: LeaseStore, lease: Lease):
    store.update(lease.name, lambda held: Lease(held.name, held.identity, 1.0, time.time(), 0.03))
    extension = LeaseExtension(store.file(lease.name))
    seen = set()

    def again() -> bool:
        extension.renew_when_due()
        seen.add(renewed_at(store, lease))
        return len(seen) > 3

    wait_for(again, 10, "several renewals")
