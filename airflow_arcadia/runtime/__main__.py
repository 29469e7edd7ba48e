"""``python -m airflow_arcadia.runtime``: the worker, configured by its environment alone.

Exit codes: 0 ended on purpose, 2 the environment is not valid, 3 Ray could not be joined, 4 the server ended
by itself, 5 the engine hung.
"""

from __future__ import annotations

import argparse
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from airflow_arcadia.exceptions import ArcadiaError
from airflow_arcadia.runtime.lease_watch import LeaseWatch, remove_warm_lease
from airflow_arcadia.runtime.log import say
from airflow_arcadia.runtime.secret_variables import start_anew_without_secrets
from airflow_arcadia.runtime.server_command import server_argv, server_env
from airflow_arcadia.runtime.server_reports import SupervisorEnd
from airflow_arcadia.runtime.shared_memory import EngineSharedMemory
from airflow_arcadia.runtime.supervisor import (
    StopSignal,
    adopt_orphans,
    descendants,
    end_children,
    start_child,
    watch,
)
from airflow_arcadia.runtime.watchdog import Watchdog, ensure_marked
from airflow_arcadia.worker import PlacedWorker

STOPPED, BAD_ENVIRONMENT, NO_RAY, SERVER_ENDED, HUNG = 0, 2, 3, 4, 5
_AFTER_DRAIN_S = 5.0  # what vLLM's own shutdown takes after the last request


def main() -> int:
    """Serve until told to stop, until the lease ends, or until the server dies."""
    argparse.ArgumentParser(
        prog="python -m airflow_arcadia.runtime",
        description=__doc__,
        epilog="Variables: NUMBER_GPUS, RAY_ADDRESS, FASTCHAT_*, … see airflow_arcadia/worker.py.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args()
    start_anew_without_secrets(os.environ, ["-m", "airflow_arcadia.runtime", *sys.argv[1:]])
    stop = StopSignal()
    adopt_orphans()
    try:
        spec = PlacedWorker.from_env(os.environ)
    except ArcadiaError as error:
        say(f"cannot start: {error}")
        return BAD_ENVIRONMENT
    ensure_marked(os.environ, f"worker/{spec.name}")
    record = _shm_record(spec)
    watchdog = Watchdog(
        os.environ, shm_record=record, controller=spec.controller_address, worker_url=spec.fastchat_url
    )
    watchdog.keep()
    try:
        return _join_and_serve(spec, stop, watchdog, record)
    finally:
        watchdog.dismiss()
        if spec.lease_file:
            remove_warm_lease(Path(spec.lease_file))


def _shm_record(spec: PlacedWorker) -> Path:
    """File for the list of the engine's shared memory: beside the lease, where a teardown finds it."""
    if spec.lease_file:
        return Path(spec.lease_file).with_name(f"{spec.name}.shm")
    return Path(tempfile.gettempdir()) / f"arcadia-{secrets.token_hex(8)}.shm"


def _join_and_serve(spec: PlacedWorker, stop: StopSignal, watchdog: Watchdog, record: Path) -> int:
    node_ip, raylet = None, None
    if spec.uses_ray:
        # Its HTTP client is not loaded for a worker of one GPU, whose start would wait for it.
        from airflow_arcadia.runtime import ray_node  # noqa: PLC0415

        try:
            node_ip, raylet = ray_node.join(spec, os.environ)
        except ArcadiaError as error:
            say(f"cannot start: {error}")
            return NO_RAY
    try:
        spare = [raylet.pid] if raylet else []
        return serve(spec, stop, node_ip, watchdog=watchdog, record=record, spare=spare)
    finally:
        if raylet is not None:
            end_children(raylet, grace_s=_AFTER_DRAIN_S, spare=watchdog.pids)


def serve(
    spec: PlacedWorker,
    stop: StopSignal,
    node_ip: str | None,
    *,
    watchdog: Watchdog,
    record: Path,
    spare: Iterable[int] = (),
) -> int:
    """Run vLLM's server; returns the worker's exit code, with nothing of the server left.

    :param node_ip: address of the Ray node on this host.
    :param record: file for the list of the engine's shared memory.
    :param spare: pids of this process's children that the server does not own.
    """
    memory = EngineSharedMemory(record)
    reports = SupervisorEnd()
    lease = LeaseWatch(spec.lease_file)

    def record_memory() -> None:
        if memory.due():
            memory.look(descendants())

    env = server_env(spec, os.environ, node_ip) | reports.environment
    server = start_child(server_argv(spec), env, pass_fds=reports.inherited)
    reports.opened()
    reason = watch(server, [stop.check, lease.check, reports.check, watchdog.keep, record_memory])
    # What the engine mapped since the last look; after the drain it may be gone, killed, and unknown.
    memory.look(descendants())
    if reason:
        say(f"stopping: {reason}")
    if reason and not reports.hung:
        _drain(server, spec.drain_seconds)
    end_children(server, grace_s=_AFTER_DRAIN_S, spare=[*spare, *watchdog.pids])
    reports.check()
    if reports.registered and spec.controller_address:
        # The server had no time to do it itself.
        from airflow_arcadia.runtime.fastchat.registration import leave_controller  # noqa: PLC0415

        leave_controller(spec.controller_address, spec.fastchat_url)
    if left := memory.remove():
        say(f"shared memory still in use: {', '.join(left)}")
    if reason:
        say("stopped")
        return HUNG if reports.hung else STOPPED
    say(how_it_ended(server.returncode))
    return SERVER_ENDED


def how_it_ended(code: int) -> str:
    """The line for a server that ended although nobody asked it to.

    :param code: its exit code, negative for a signal. vLLM's server ends with 0 after its engine died.
    """
    if code < 0:
        return f"ended: vLLM's server was killed by {signal.Signals(-code).name}"
    if code == 0:
        return "ended: vLLM's server shut down, as it does when its engine has died; see the lines above"
    return f"ended: vLLM's server failed with exit code {code}; see the lines above"


def _drain(server: subprocess.Popen[bytes], seconds: float) -> None:
    """Let running requests end: the middleware takes SIGUSR1 as "refuse new ones, then end"."""
    # Before the middleware listens, SIGUSR1 simply ends the server: then nothing runs in it either.
    server.send_signal(signal.SIGUSR1)
    try:
        server.wait(seconds + _AFTER_DRAIN_S)
    except subprocess.TimeoutExpired:
        say(f"requests still ran after {seconds:.0f} s and are cut off")


if __name__ == "__main__":
    sys.exit(main())
