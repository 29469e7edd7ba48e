"""Run a worker as a process of this machine: the default without a cluster."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from airflow_arcadia.exceptions import ArcadiaConfigError, WorkerError
from airflow_arcadia.kubernetes.pod_template import API_KEY, BATCH_TOKEN, HF_TOKEN, RAY_TOKEN, STORAGE_OPTIONS
from airflow_arcadia.launchers.base import Credentials
from airflow_arcadia.lease import Lease, Owned
from airflow_arcadia.lease_store import LeaseStore
from airflow_arcadia.ports import free_port, require_free
from airflow_arcadia.processes import (
    ProcessRef,
    end,
    exit_code,
    find_marked,
    is_alive,
    mark,
    spawn,
    tail,
    worker_environment,
)
from airflow_arcadia.ray_cluster.jobs import job_environment
from airflow_arcadia.readiness import ProcessObservation
from airflow_arcadia.worker import Placement, RayConnection, WorkerHandle, WorkerSpec

RUNTIME = "airflow_arcadia.runtime"
_HF_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
LOG_LINES = 40  # a traceback of vLLM's with the lines before it
_LOOK_S = 1.0
_PORT_WAIT_S = 10.0
_PORT_POLL_S = 0.1


class ProcessLauncher:
    """Runs workers with the worker environment's Python, under leases of this machine.

    :param store: where the leases are.
    :param worker_python: Python of the worker's environment.
    :param port: port to serve on; 0 takes a free one.
    :param secrets: what the workers may know: ``api-key``, ``ray-token``; written to files of the lease.
    """

    name = "process"
    runs_as = "a process of this machine"
    on_this_machine = True
    drain_seconds = 10.0

    def __init__(
        self,
        store: LeaseStore,
        worker_python: str,
        *,
        port: int = 0,
        secrets: Mapping[str, str] | None = None,
    ) -> None:
        self._store = store
        self._python = worker_python
        self._port = port
        self._secrets = secrets or {}

    def launch(self, spec: WorkerSpec, lease: Lease, *, ray: RayConnection | None) -> WorkerHandle:
        """Start the worker, or return the handle of the one this lease already runs under that name.

        Raises :class:`WorkerError` when the port is taken or the worker's Python cannot be started.
        """
        if spec.uses_ray and not spec.ray_address:
            raise ArcadiaConfigError(
                f"NUMBER_GPUS is {spec.num_gpus} but the worker has no Ray cluster.",
                what_to_do="Give it what ArcadiaProvisionRayClusterOperator returned.",
            )
        owned = f"worker/{spec.name}"
        found = self._running(lease, spec.name, owned)
        if found is not None:
            return self._handle(spec, lease, ray, found)
        # A worker of an earlier attempt that died may have left something that holds a GPU or the port.
        end(None, lease.name, owned, grace_s=0)
        placed = spec.at(self._placement(lease.name, gateway=spec.controller_address is not None))
        log = self._store.directory(lease.name) / f"{spec.name}.log"
        where: dict[str, Any] = {"log": str(log), "lease": lease.name, "owned": owned}
        if ray is not None:
            where |= {"ray_dashboard": ray.dashboard_url, "ray_token_file": placed.ray_token_file}
        self._record(lease, spec.name, where)
        env = worker_environment(os.environ, self._python) | mark(lease.name, owned)
        env |= self._hf_token(lease.name) | job_environment(lease.name) | placed.to_env()
        process = spawn([self._python, "-m", RUNTIME], env=env, log_path=log)
        where |= {"pid": process.pid, "started_at": process.started_at, "url": placed.url}
        self._record(lease, spec.name, where)
        return self._handle(spec, lease, ray, where)

    def _hf_token(self, lease: str) -> dict[str, str]:
        """Hugging Face's token as a file: the connection's, or that of Airflow's environment."""
        token = self._secrets.get(HF_TOKEN) or next(filter(None, map(os.environ.get, _HF_TOKENS)), None)
        return {"HF_TOKEN_PATH": str(self._store.write_secret(lease, HF_TOKEN, token))} if token else {}

    def _placement(self, lease: str, *, gateway: bool) -> Placement:
        def secret_file(name: str) -> str | None:
            secret = self._secrets.get(name)
            return str(self._store.write_secret(lease, name, secret)) if secret else None

        return Placement(
            port=_free_port(Placement.host, self._port),
            # FastChat's gateway sends no key: it needs a port of its own where the worker asks for one.
            fastchat_port=free_port(Placement.host) if gateway and API_KEY in self._secrets else None,
            api_key_file=secret_file(API_KEY),
            ray_token_file=secret_file(RAY_TOKEN),
            batch_token_file=self._batch_token_file(lease),
            storage_options_file=secret_file(STORAGE_OPTIONS),
            lease_file=str(self._store.file(lease)),
        )

    def _batch_token_file(self, lease: str) -> str | None:
        """The one file of the lease: its tasks send the same token to all of its workers."""
        if BATCH_TOKEN not in self._secrets:
            return None
        if self._store.read_secret(lease, BATCH_TOKEN) is None:
            self._store.write_secret(lease, BATCH_TOKEN, self._secrets[BATCH_TOKEN])
        return str(self._store.directory(lease) / BATCH_TOKEN)

    async def observe(self, handle: WorkerHandle) -> ProcessObservation:
        """Whether its process lives, and its last log lines."""
        return await asyncio.to_thread(self._observe, handle.where)

    async def watch(self, handle: WorkerHandle) -> AsyncGenerator[ProcessObservation, None]:
        """What it does, every second."""
        while True:
            yield await self.observe(handle)
            await asyncio.sleep(_LOOK_S)

    async def log_lines(self, handle: WorkerHandle) -> AsyncIterator[str]:
        """Its log as it grows, from the beginning."""
        position = 0
        while True:
            lines, position = await asyncio.to_thread(_lines_from, Path(str(handle.where["log"])), position)
            for line in lines:
                yield line
            await asyncio.sleep(_LOOK_S)

    async def credentials(self, handle: WorkerHandle) -> Credentials:
        """The key that all workers of this machine have, and the token in the lease's file.

        Raises :class:`ArcadiaError` when the lease is gone or the file cannot be read.
        """
        token = await asyncio.to_thread(self._store.read_secret, handle.lease, BATCH_TOKEN)
        return Credentials(self._secrets.get(API_KEY), token)

    def stop(self, where: Mapping[str, object], *, grace_s: float) -> Sequence[str]:
        """End the worker and all it started; returns what is still there afterwards."""
        return end(_ref(where), str(where["lease"]), str(where["owned"]), grace_s=grace_s)

    def _observe(self, where: Mapping[str, Any]) -> ProcessObservation:
        ref = _ref(where)
        lines = tail(Path(str(where["log"])), LOG_LINES)
        if ref is None or is_alive(ref):
            return ProcessObservation(None if ref is None else True, log_tail=lines)
        code = exit_code(ref)
        reason = _how(code) if code is not None else None
        return ProcessObservation(False, reason, lines)

    def _running(self, lease: Lease, name: str, owned: str) -> dict[str, Any] | None:
        """Where the worker of an earlier attempt is, if it still runs."""
        record = lease.find("worker", name)
        if record is None:
            return None
        ref = _ref(record.where)
        if ref is not None:
            return dict(record.where) if is_alive(ref) else None
        # The earlier attempt died between starting the worker and writing down its pid.
        for process in find_marked(lease.name, owned):
            with contextlib.suppress(psutil.Error):
                if process.cmdline()[1:3] == ["-m", RUNTIME]:
                    url = process.environ()["FASTCHAT_WORKER_ADDRESS"]
                    where = {"pid": process.pid, "started_at": process.create_time(), "url": url}
                    return dict(record.where) | where
        return None

    def _record(self, lease: Lease, name: str, where: Mapping[str, Any]) -> None:
        item = Owned("worker", name, self.name, dict(where))
        self._store.update(lease.name, lambda held: held.record(item))

    def _handle(
        self, spec: WorkerSpec, lease: Lease, ray: RayConnection | None, where: Mapping[str, Any]
    ) -> WorkerHandle:
        return WorkerHandle(
            name=spec.name,
            lease=lease.name,
            launcher=self.name,
            url=str(where["url"]),
            served_model_name=spec.served_model_name,
            num_gpus=spec.num_gpus,
            controller_address=spec.controller_address,
            ray=ray,
            where=where,
        )


def _lines_from(path: Path, position: int) -> tuple[list[str], int]:
    """Whole lines of the file from that byte on, and where the next one begins."""
    try:
        with path.open("rb") as file:
            file.seek(position)
            read = file.read()
    except FileNotFoundError:
        return [], position
    # A progress bar ends its lines with a carriage return.
    whole = read[: max(read.rfind(b"\n"), read.rfind(b"\r")) + 1]
    return whole.decode(errors="replace").splitlines(), position + len(whole)


def _how(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"


def _ref(where: Mapping[str, Any]) -> ProcessRef | None:
    return ProcessRef(int(where["pid"]), float(where["started_at"])) if "pid" in where else None


def _free_port(host: str, port: int) -> int:
    """``port`` if nothing has it, a free one for 0. Raises :class:`WorkerError` naming the holder."""
    deadline = time.monotonic() + _PORT_WAIT_S
    while True:
        try:
            return require_free(host, port) if port else free_port(host)
        except OSError as error:
            holder = _holder(port)
            # Held by nobody that lives: the threads of a killed worker that have not all ended yet.
            if error.errno != errno.EADDRINUSE or holder or time.monotonic() > deadline:
                raise WorkerError(
                    f"The worker cannot listen on {host}:{port}: {error.strerror}{holder}.",
                    what_to_do="Choose another port, or 0 for any free one.",
                ) from error
            time.sleep(_PORT_POLL_S)


def _holder(port: int) -> str:
    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            if connection.laddr and connection.laddr.port == port and connection.pid:
                what = (
                    ""
                    if connection.status == psutil.CONN_LISTEN
                    else f" for a connection ({connection.status})"
                )
                return f", held by process {connection.pid}{what}"
    return ""
