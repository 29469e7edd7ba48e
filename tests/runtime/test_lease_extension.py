"""A batch in the worker that gets further keeps the worker's lease, with or without Airflow."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import pytest

from airflow_arcadia.lease import Lease
from airflow_arcadia.lease_store import LeaseStore
from airflow_arcadia.runtime.lease_extension import LeaseExtension
from airflow_arcadia.warm import Request, use_of
from tests.conftest import unique_identity, wait_for


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


def test_a_warm_worker_renews_for_the_runs_that_use_it(store: LeaseStore):
    """Whose batch it is, it does not know; a run that is gone is not brought back."""
    before = time.time() - 1000
    run = store.reserve(unique_identity(), before)
    use = use_of(run, 600, before)
    gone = dataclasses.replace(use, user="gone-0123456789")
    lease = Request("k", "m").new(0, use, before)
    assert lease.warm is not None
    lease = dataclasses.replace(lease, warm=dataclasses.replace(lease.warm, uses=(use, gone)))
    assert store.create(lease)
    LeaseExtension(store.file(lease.name)).renew_when_due()

    def renewed(name: str) -> bool:
        held = store.read(name)
        return held is not None and held.last_renewed_at > before + 900

    wait_for(lambda: renewed(run.name) and renewed(lease.name), 10, "both to be renewed")
    assert store.read("gone-0123456789") is None
