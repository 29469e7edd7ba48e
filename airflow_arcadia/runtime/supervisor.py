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
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import FrameType

import psutil

from airflow_arcadia.runtime.lease_watch import LEASE_POLL_S, LeaseWatch, remove_warm_lease
from airflow_arcadia.runtime.log import say
from airflow_arcadia.runtime.shared_memory import kill_all
from airflow_arcadia.runtime.watchdog import Watchdog, ensure_marked

POLL_S = 0.2
KILL_WAIT_S = 5.0
_PR_SET_PDEATHSIG = 1  # prctl(2)
_PR_SET_CHILD_SUBREAPER = 36

Check = Callable[[], str | None]
"""Called at every poll: the reason to end the child, or None. It must return at once."""


class StopSignal:
    """Remembers the first SIGTERM or SIGINT, so that a loop can end in order."""

    def __init__(self) -> None:
        self.received: str | None = None
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._remember)

    def check(self) -> str | None:
        """The reason to end, once a signal was received."""
        return f"{self.received} received" if self.received else None

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.received = self.received or signal.Signals(number).name


def start_child(
    argv: Sequence[str], env: Mapping[str, str], pass_fds: Sequence[int] = ()
) -> subprocess.Popen[bytes]:
    """Start a command that dies with this process, however this process dies.

    :param pass_fds: file descriptors that the command inherits.
    """
    libc = ctypes.CDLL(None, use_errno=True)

    def die_with_parent() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    return subprocess.Popen(
        list(argv),
        env=dict(env),
        stdin=subprocess.DEVNULL,
        pass_fds=tuple(pass_fds),
        preexec_fn=die_with_parent,  # noqa: PLW1509 - one C call, and no thread has been started
    )


def adopt_orphans() -> None:
    """Make this process the parent of whatever its descendants leave behind, so that none is lost."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)


def descendants(spare: Iterable[int] = ()) -> list[psutil.Process]:
    """Everything this process started, directly or not.

    :param spare: pids to leave out, with everything that these started.
    """
    left_out: set[psutil.Process] = set()
    for pid in spare:
        if psutil.pid_exists(pid):
            process = psutil.Process(pid)
            left_out |= {process, *process.children(recursive=True)}
    return [p for p in psutil.Process().children(recursive=True) if p not in left_out]


def end_children(child: subprocess.Popen[bytes], *, grace_s: float, spare: Iterable[int] = ()) -> None:
    """SIGTERM to the child; once it ended, or after ``grace_s`` seconds, SIGKILL to what is left of it."""
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(grace_s)
        except subprocess.TimeoutExpired:
            say(f"process {child.pid} did not end within {grace_s:.0f} s of SIGTERM and is killed")
    family = descendants(spare)
    kill_all(family)
    psutil.wait_procs(family, timeout=KILL_WAIT_S)


def watch(child: subprocess.Popen[bytes], checks: Sequence[Check]) -> str | None:
    """Block until the child ends (None), or until one of the checks says why it must be ended."""
    while child.poll() is None:
        for check in checks:
            if reason := check():
                return reason
        time.sleep(POLL_S)
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: exit code of the command, or 0 when it was ended on purpose."""
    parser = argparse.ArgumentParser(prog="python -m airflow_arcadia.runtime.supervisor", description=__doc__)
    parser.add_argument("--lease-file", required=True, help="lease that the command runs under")
    parser.add_argument("--grace", type=float, default=5.0, help="seconds between SIGTERM and SIGKILL")
    parser.add_argument(
        "--lease-poll", type=float, default=LEASE_POLL_S, help="seconds between two looks at the lease"
    )
    parser.add_argument(
        "--shared", action="store_true", help="go on while another lease uses what this one owns"
    )
    parser.add_argument("command", nargs="+", help="the command, after --")
    options = parser.parse_args(arguments)
    stop = StopSignal()
    adopt_orphans()
    ensure_marked(os.environ, "command")
    watchdog = Watchdog(os.environ)
    watchdog.keep()
    child = start_child(options.command, os.environ)
    lease = LeaseWatch(options.lease_file, shared=options.shared, poll_s=options.lease_poll)
    reason = watch(child, [stop.check, lease.check, watchdog.keep])
    say(f"stopping: {reason}" if reason else f"the command ended with exit code {child.returncode}")
    end_children(child, grace_s=options.grace, spare=watchdog.pids)
    watchdog.dismiss()
    remove_warm_lease(Path(options.lease_file))
    return 0 if reason else int(child.returncode) or 1


if __name__ == "__main__":
    sys.exit(main())
