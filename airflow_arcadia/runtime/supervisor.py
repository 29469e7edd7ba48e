"""Run a command for as long as its lease holds, and leave nothing of it behind.

``python -m airflow_arcadia.runtime.supervisor --lease-file FILE -- COMMAND …`` is how a local Ray head runs;
the worker uses the same functions for vLLM's server.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import FrameType

import psutil

from airflow_arcadia.lease_store import read_lease_file
from airflow_arcadia.runtime.log import say

POLL_S = 0.2
LEASE_POLL_S = 5.0
LOOK_S = 2.0
KILL_WAIT_S = 5.0
_PR_SET_PDEATHSIG = 1  # prctl(2)
_PR_SET_CHILD_SUBREAPER = 36


def lease_ended(path: str | None, now: float) -> str | None:
    """Why the lease no longer holds, or None while it does or cannot be read."""
    if path is None:
        return None
    try:
        lease = read_lease_file(path)
    except (OSError, ValueError, TypeError, KeyError):
        return None
    if lease is None:
        return "its lease is gone"
    if lease.released:
        return "its lease was released"
    return f"its lease lapsed {now - lease.expires_at:.0f} s ago" if lease.lapsed(now) else None


class StopSignal:
    """Remembers the first SIGTERM or SIGINT, so that a loop can end in order."""

    def __init__(self) -> None:
        self.received: str | None = None
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._remember)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.received = self.received or signal.Signals(number).name


def start_child(argv: Sequence[str], env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a command that dies with this process, however this process dies."""
    libc = ctypes.CDLL(None, use_errno=True)

    def die_with_parent() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    return subprocess.Popen(
        list(argv),
        env=dict(env),
        stdin=subprocess.DEVNULL,
        preexec_fn=die_with_parent,  # noqa: PLW1509 - one C call, and no thread has been started
    )


def adopt_orphans() -> None:
    """Make this process the parent of whatever its descendants leave behind, so that none is lost."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)


def descendants(besides: subprocess.Popen[bytes] | None = None) -> list[psutil.Process]:
    """Everything this process started, directly or not, without ``besides`` and what that started."""
    found = psutil.Process().children(recursive=True)
    if besides is None or not psutil.pid_exists(besides.pid):
        return found
    other = psutil.Process(besides.pid)
    return [p for p in found if p not in {other, *other.children(recursive=True)}]


def end_children(
    child: subprocess.Popen[bytes], *, grace_s: float, besides: subprocess.Popen[bytes] | None = None
) -> None:
    """SIGTERM to the child; once it ended, or after ``grace_s`` seconds, SIGKILL to what is left of it."""
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(grace_s)
        except subprocess.TimeoutExpired:
            say(f"process {child.pid} did not end within {grace_s:.0f} s of SIGTERM and is killed")
    family = descendants(besides)
    for process in family:
        _kill(process)
    psutil.wait_procs(family, timeout=KILL_WAIT_S)


def watch(
    child: subprocess.Popen[bytes],
    stop: StopSignal,
    lease_file: str | None,
    look_after: Callable[[], None] = lambda: None,
    lease_poll_s: float = LEASE_POLL_S,
) -> str | None:
    """Block until the child ends (None), or until it must be ended (the reason).

    :param look_after: called every few seconds meanwhile.
    :param lease_poll_s: seconds between two reads of the lease file.
    """
    next_lease = next_look = 0.0
    while child.poll() is None:
        if time.monotonic() >= next_look:
            look_after()
            next_look = time.monotonic() + LOOK_S
        if stop.received:
            return f"{stop.received} received"
        if time.monotonic() >= next_lease:
            if reason := lease_ended(lease_file, time.time()):
                return reason
            next_lease = time.monotonic() + lease_poll_s
        time.sleep(POLL_S)
    return None


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: exit code of the command, or 0 when it was ended on purpose."""
    parser = argparse.ArgumentParser(prog="python -m airflow_arcadia.runtime.supervisor", description=__doc__)
    parser.add_argument("--lease-file", required=True, help="lease that the command runs under")
    parser.add_argument("--grace", type=float, default=5.0, help="seconds between SIGTERM and SIGKILL")
    parser.add_argument(
        "--lease-poll", type=float, default=LEASE_POLL_S, help="seconds between two reads of the lease"
    )
    parser.add_argument("command", nargs="+", help="the command, after --")
    options = parser.parse_args(arguments)
    stop = StopSignal()
    adopt_orphans()
    child = start_child(options.command, os.environ)
    reason = watch(child, stop, options.lease_file, lease_poll_s=options.lease_poll)
    say(f"ending: {reason}" if reason else f"the command ended with exit code {child.returncode}")
    end_children(child, grace_s=options.grace)
    return 0 if reason else int(child.returncode) or 1


if __name__ == "__main__":
    sys.exit(main())
