"""Fixtures of tests that answer batches: a connection, a server of the test's, and a worker that lives."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest

from airflow_arcadia.lease import Lease
from airflow_arcadia.lease_store import LeaseStore
from airflow_arcadia.processes import mark, spawn
from airflow_arcadia.worker import WorkerHandle
from tests.airflow_context import set_connection
from tests.batch.fake_engine import FakeEngine, serving


@pytest.fixture(autouse=True)
def connection(monkeypatch: pytest.MonkeyPatch, store: LeaseStore) -> None:
    """The connection ``arcadia_default``; in every test of a module that imports it."""
    set_connection(monkeypatch, arcadia_config_yaml="rayClusters: []", state_dir=str(store.root))


@pytest.fixture
async def engine() -> AsyncIterator[FakeEngine]:
    async with serving() as running:
        yield running


@pytest.fixture
def worker(engine: FakeEngine, store: LeaseStore, lease: Lease) -> dict[str, Any]:
    """A handle whose process lives, and whose server is the test's."""
    return make_worker(engine, store, lease).to_dict()


def make_worker(
    engine: FakeEngine, store: LeaseStore, lease: Lease, code: str = "import time; time.sleep(600)"
) -> WorkerHandle:
    """A worker whose process runs ``code``."""
    log = store.directory(lease.name) / "w.log"
    ref = spawn([sys.executable, "-c", code], env=mark(lease.name, "worker/w"), log_path=log)
    where = {
        "pid": ref.pid,
        "started_at": ref.started_at,
        "log": str(log),
        "lease": lease.name,
        "owned": "worker/w",
    }
    return WorkerHandle("w", lease.name, "process", engine.url, "tiny", 1, where=where)
