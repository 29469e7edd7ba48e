"""The watch notices that all workers are gone, and says why."""

import sys

from airflow_arcadia.launchers.monitor import WorkerWatch
from airflow_arcadia.launchers.process import ProcessLauncher
from airflow_arcadia.lease import Lease
from airflow_arcadia.lease_store import LeaseStore
from airflow_arcadia.processes import mark, spawn
from airflow_arcadia.worker import WorkerHandle
from tests.conftest import wait_for


def run(store: LeaseStore, lease: Lease, name: str, code: str) -> WorkerHandle:
    log = store.directory(lease.name) / f"{name}.log"
    ref = spawn([sys.executable, "-c", code], env=mark(lease.name, name), log_path=log)
    where = {"pid": ref.pid, "started_at": ref.started_at, "log": str(log)}
    return WorkerHandle(name, lease.name, "process", "http://127.0.0.1:1", "m", 1, where=where)


def test_only_when_the_last_one_is_gone_all_are_lost(store: LeaseStore, lease: Lease):
    stays = run(store, lease, "stays", "import time; time.sleep(600)")
    dies = run(store, lease, "dies", "raise MemoryError('rank 1')")
    launchers = {"process": ProcessLauncher(store, sys.executable)}
    with WorkerWatch(launchers, [dies]) as watch:
        wait_for(lambda: watch.all_lost, 10, "the loss to be noticed")
    error = watch.error()
    assert "Worker dies ended while the batch ran: MemoryError: rank 1." in error.what
    assert "MemoryError: rank 1" in str(error).splitlines()[-1]
    assert not error.retryable
    with WorkerWatch(launchers, [stays, dies]) as watch:
        wait_for(lambda: watch._lost, 10, "the loss to be noticed")
        assert not watch.all_lost
