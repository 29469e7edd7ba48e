"""Ends what a supervisor leaves behind that was killed itself.

``python -m airflow_arcadia.runtime.watchdog`` runs beside each supervisor, in a session of its own, and does
nothing until the pipe to it breaks. Then nobody watches the lease any more, and Airflow may be down: it ends
every process that carries the supervisor's mark, removes the shared memory of the engine, and lets FastChat's
controller forget the worker.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, MutableMapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from airflow_arcadia.processes import LEASE_VARIABLE, OWNED_VARIABLE, find_marked, mark
from airflow_arcadia.runtime.log import say
from airflow_arcadia.runtime.shared_memory import EngineSharedMemory, kill_all

_DONE = b"done"
_KILL_WAIT_S = 5.0
_RESTART_S = 1.0
_POLL_S = 0.05


def ensure_marked(env: MutableMapping[str, str], name: str) -> None:
    """Mark this process and all it starts, where no launcher has: in a pod, or started from a shell."""
    if LEASE_VARIABLE not in env or OWNED_VARIABLE not in env:
        env.update(mark(f"unowned-{os.getpid()}-{time.time():.0f}", name))


class Watchdog:
    """The supervisor's side: keeps a watchdog process running.

    :param env: the supervisor's environment, with its mark.
    :param shm_record: file that lists the engine's shared memory, one path a line.
    :param controller: URL of FastChat's controller, if the worker registers with one.
    :param worker_url: the worker's name there.
    """

    def __init__(
        self,
        env: Mapping[str, str],
        *,
        shm_record: Path | None = None,
        controller: str | None = None,
        worker_url: str | None = None,
    ) -> None:
        self._env = env
        self._argv = [sys.executable, "-m", "airflow_arcadia.runtime.watchdog"]
        self._argv += ["--supervisor", str(os.getpid())]
        if shm_record is not None:
            self._argv += ["--shm-record", str(shm_record)]
        if controller and worker_url:
            self._argv += ["--controller", controller, "--worker-url", worker_url]
        self._process: subprocess.Popen[bytes] | None = None
        self._not_before = 0.0

    @property
    def pids(self) -> tuple[int, ...]:
        """Its process, to be spared when the supervisor ends all others."""
        return (self._process.pid,) if self._process else ()

    def keep(self) -> None:
        """Start it, or start it again when it was killed."""
        if self._process is not None and self._process.poll() is None:
            return
        if time.monotonic() < self._not_before:
            return
        self._not_before = time.monotonic() + _RESTART_S
        self._process = subprocess.Popen(
            self._argv, env=dict(self._env), stdin=subprocess.PIPE, start_new_session=True
        )

    def dismiss(self) -> None:
        """End it: the supervisor has left nothing behind."""
        if self._process is None or self._process.stdin is None:
            return
        with suppress(OSError):
            self._process.stdin.write(_DONE)
            self._process.stdin.close()
        try:
            self._process.wait(_KILL_WAIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Cleanup:
    """Ends all processes with a mark but this one, and removes their shared memory.

    :param shm_record: file that lists the engine's shared memory.
    """

    def __init__(self, lease: str, owned: str, shm_record: Path | None) -> None:
        self._lease, self._owned = lease, owned
        self._memory = EngineSharedMemory(shm_record)

    def kill(self) -> None:
        """SIGKILL to the server, the engine and whatever else is theirs: the GPUs come first."""
        marked = self._marked()
        self._memory.look(marked)
        kill_all(marked)

    def finish(self) -> list[str]:
        """Wait until all of them are gone, and remove their shared memory; what is left, as text."""
        deadline = time.monotonic() + _KILL_WAIT_S
        while (left := self._marked()) and time.monotonic() < deadline:
            # One may have started another before it was killed itself.
            kill_all(left)
            time.sleep(_POLL_S)
        return [f"process {process.pid}" for process in left] + self._memory.remove()

    def _marked(self) -> list[psutil.Process]:
        return [p for p in find_marked(self._lease, self._owned) if p.pid != os.getpid()]


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: wait for the supervisor's end, then clean up unless it has done so itself."""
    parser = argparse.ArgumentParser(prog="python -m airflow_arcadia.runtime.watchdog", description=__doc__)
    parser.add_argument("--supervisor", type=int, required=True, help="its pid, for the log")
    parser.add_argument("--shm-record", type=Path, help="file that lists the engine's shared memory")
    parser.add_argument("--controller", help="URL of FastChat's controller")
    parser.add_argument("--worker-url", help="the worker's name at the controller")
    options = parser.parse_args(arguments)
    # A machine that shuts down, or a terminal, may signal everybody: the supervisor comes first then.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if sys.stdin.buffer.read() == _DONE:
        return 0
    say(f"stopping: the supervisor, process {options.supervisor}, was killed")
    cleanup = Cleanup(os.environ[LEASE_VARIABLE], os.environ[OWNED_VARIABLE], options.shm_record)
    cleanup.kill()
    if options.controller:
        # A teardown may end this process soon, and nobody else tells the controller.
        _leave(options.controller, options.worker_url)
    left = cleanup.finish()
    say(f"still there: {', '.join(left)}" if left else "stopped; nothing is left")
    return 1 if left else 0


def _leave(controller: str, worker_url: str) -> None:
    # An HTTP client that most watchdogs never need is not kept in memory for a worker's whole life.
    from airflow_arcadia.runtime.fastchat.registration import leave_controller  # noqa: PLC0415

    leave_controller(controller, worker_url)


if __name__ == "__main__":
    sys.exit(main())
