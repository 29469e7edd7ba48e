"""``python -m airflow_arcadia.runtime``: the worker, told what to do by its environment alone.

Exit codes: 0 ended on purpose, 2 the environment makes no sense, 3 Ray could not be joined, 4 the server
ended by itself.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path

from airflow_arcadia.exceptions import ArcadiaError
from airflow_arcadia.runtime import ray_node
from airflow_arcadia.runtime.log import say
from airflow_arcadia.runtime.server_command import server_argv, server_env
from airflow_arcadia.runtime.shared_memory import EngineSharedMemory
from airflow_arcadia.runtime.supervisor import (
    StopSignal,
    adopt_orphans,
    end_children,
    start_child,
    watch,
)
from airflow_arcadia.worker import WorkerSpec

STOPPED, BAD_ENVIRONMENT, NO_RAY, SERVER_ENDED = 0, 2, 3, 4
_AFTER_DRAIN_S = 5.0  # what vLLM's own shutdown takes after the last request


def main() -> int:
    """Serve until told to stop, until the lease ends, or until the server dies."""
    argparse.ArgumentParser(
        prog="python -m airflow_arcadia.runtime",
        description=__doc__,
        epilog="Variables: NUMBER_GPUS, RAY_ADDRESS, FASTCHAT_*, … see airflow_arcadia/worker.py.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args()
    stop = StopSignal()
    adopt_orphans()
    try:
        spec = WorkerSpec.from_env(os.environ)
    except ArcadiaError as error:
        say(f"cannot start: {error}")
        return BAD_ENVIRONMENT
    node_ip, raylet = None, None
    if spec.uses_ray:
        try:
            node_ip, raylet = ray_node.join(spec, os.environ)
        except ArcadiaError as error:
            say(f"cannot start: {error}")
            return NO_RAY
    try:
        return serve(spec, stop, node_ip, raylet)
    finally:
        if raylet is not None:
            end_children(raylet, grace_s=_AFTER_DRAIN_S)


def serve(
    spec: WorkerSpec, stop: StopSignal, node_ip: str | None, raylet: subprocess.Popen[bytes] | None
) -> int:
    """Run vLLM's server; returns the worker's exit code, with nothing of the server left."""
    record = Path(spec.lease_file).with_name(f"{spec.name}.shm") if spec.lease_file else None
    memory = EngineSharedMemory(record)
    server = start_child(server_argv(spec), server_env(spec, os.environ, node_ip))
    reason = watch(server, stop, spec.lease_file, memory.look)
    if reason:
        say(f"stopping: {reason}")
        _drain(server, spec.drain_seconds)
    end_children(server, grace_s=_AFTER_DRAIN_S, besides=raylet)
    if left := memory.remove():
        say(f"shared memory still in use: {', '.join(left)}")
    if reason:
        say("stopped")
        return STOPPED
    how = f"signal {-server.returncode}" if server.returncode < 0 else f"exit code {server.returncode}"
    say(f"vLLM's server ended by itself with {how}; the lines above say why")
    return SERVER_ENDED


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
