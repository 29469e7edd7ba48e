"""The supervisor: a command ends with its lease, with its parent, and with all it started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from airflow_arcadia.lease import Lease
from airflow_arcadia.lease_store import LeaseStore
from airflow_arcadia.processes import find_marked, mark
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


WATCHDOG = "airflow_arcadia.runtime.watchdog"


@pytest.fixture
def supervised(store: LeaseStore, lease: Lease, tmp_path: Path):
    ready = tmp_path / "ready"
    supervisor = subprocess.Popen(
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
    # The supervisor, its watchdog, the command, and the command's daemon.
    wait_for(lambda: len(find_marked(lease.name)) == 4, 20, "the watchdog")
    yield supervisor
    supervisor.kill()
    supervisor.wait()


def test_sigterm_ends_the_command_and_its_daemons(supervised: subprocess.Popen, lease: Lease):
    supervised.send_signal(signal.SIGTERM)
    assert supervised.wait(20) == 0
    assert find_marked(lease.name) == []


def test_a_command_that_ends_by_itself_takes_its_daemons_along(supervised: subprocess.Popen, lease: Lease):
    command = next(p for p in psutil.Process(supervised.pid).children() if "-c" in p.cmdline())
    command.kill()
    assert supervised.wait(20) != 0
    assert find_marked(lease.name) == []


@pytest.mark.parametrize("how", ["removed", "released"])
def test_the_command_ends_with_its_lease(
    supervised: subprocess.Popen, store: LeaseStore, lease: Lease, how: str
):
    if how == "removed":
        store.remove(lease.name)
    else:
        store.update(lease.name, lambda held: held.release())
    assert supervised.wait(20) == 0
    assert supervised.stdout is not None
    assert "its lease" in supervised.stdout.read()
    assert find_marked(lease.name) == []


def test_nothing_is_left_of_a_supervisor_that_is_killed(supervised: subprocess.Popen, lease: Lease):
    supervised.kill()
    wait_for(lambda: find_marked(lease.name) == [], 15, "the end of all it started")


def test_a_watchdog_that_was_killed_is_started_again(supervised: subprocess.Popen, lease: Lease):
    first = watchdog(supervised)
    assert first is not None
    first.kill()
    wait_for(lambda: watchdog(supervised) not in {None, first}, 10, "another watchdog")
    supervised.kill()
    wait_for(lambda: find_marked(lease.name) == [], 15, "the end of all it started")


def watchdog(supervised: subprocess.Popen) -> psutil.Process | None:
    """The one that runs."""
    for process in psutil.Process(supervised.pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):  # a zombie, or gone since it was listed
            if WATCHDOG in process.cmdline():
                return process
    return None
