"""The guard: a command ends with its lease, with its parent, and with all it started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from airflow_arcadia.lease import Lease
from airflow_arcadia.lease_store import LeaseStore
from airflow_arcadia.processes import find_marked, mark
from airflow_arcadia.runtime.supervisor import lease_ended
from tests.conftest import wait_for

# It starts a daemon of its own session that ignores SIGTERM, as Ray's agents do.
COMMAND = """
import subprocess, sys, time
ignore = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); "
ignore += "time.sleep(600)"
child = subprocess.Popen([sys.executable, "-c", ignore], start_new_session=True, stdout=subprocess.PIPE)
child.stdout.readline()
open(sys.argv[1], "w").close()
time.sleep(600)
"""


@pytest.fixture
def guarded(store: LeaseStore, lease: Lease, tmp_path: Path):
    ready = tmp_path / "ready"
    guard = subprocess.Popen(
        [
            *(sys.executable, "-m", "airflow_arcadia.runtime.supervisor"),
            *("--lease-file", str(store.file(lease.name)), "--grace", "0.5", "--lease-poll", "0.2"),
            *("--", sys.executable, "-c", COMMAND, str(ready)),
        ],
        env=os.environ | mark(lease.name, "worker/w"),
        stdout=subprocess.PIPE,
        text=True,
    )
    wait_for(ready.exists, 20, "the command")
    assert len(find_marked(lease.name)) == 3
    yield guard
    guard.kill()
    guard.wait()


def test_sigterm_ends_the_command_and_its_daemons(guarded: subprocess.Popen, lease: Lease):
    guarded.send_signal(signal.SIGTERM)
    assert guarded.wait(20) == 0
    assert find_marked(lease.name) == []


def test_a_command_that_ends_by_itself_takes_its_daemons_along(guarded: subprocess.Popen, lease: Lease):
    psutil.Process(guarded.pid).children()[0].kill()
    assert guarded.wait(20) != 0
    assert find_marked(lease.name) == []


@pytest.mark.parametrize("how", ["removed", "released"])
def test_the_command_ends_with_its_lease(
    guarded: subprocess.Popen, store: LeaseStore, lease: Lease, how: str
):
    if how == "removed":
        store.remove(lease.name)
    else:
        store.update(lease.name, lambda held: held.release())
    assert guarded.wait(20) == 0
    assert guarded.stdout is not None
    assert "its lease" in guarded.stdout.read()
    assert find_marked(lease.name) == []


def test_the_command_dies_with_a_guard_that_is_killed(guarded: subprocess.Popen):
    command = psutil.Process(guarded.pid).children()[0]
    guarded.kill()
    wait_for(lambda: not command.is_running() or command.status() == psutil.STATUS_ZOMBIE, 10, "its death")


def test_why_a_lease_no_longer_holds(store: LeaseStore, lease: Lease):
    file = str(store.file(lease.name))
    assert lease_ended(None, time.time()) is None
    assert lease_ended(file, time.time()) is None
    assert "lapsed 10 s ago" in str(lease_ended(file, lease.expires_at + 10))
    store.update(lease.name, lambda held: held.release())
    assert lease_ended(file, time.time()) == "its lease was released"
    store.file(lease.name).write_text("{")  # could not read is never absent
    assert lease_ended(file, time.time()) is None
    store.remove(lease.name)
    assert lease_ended(file, time.time()) == "its lease is gone"
