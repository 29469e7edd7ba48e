"""One container: its process, its probes, its log, and the state the API is told."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from tests.kubernetes.api.store import now
from tests.kubernetes.kubelet.client import Object

_UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "k": 10**3, "M": 10**6, "G": 10**9}
_MEMORY_POLL_S = 0.3
OOM_KILLED = 137


def amount(quantity: str) -> float:
    """A quantity such as ``1500m``, ``2Gi`` or ``4`` as a number."""
    for suffix, factor in _UNITS.items():
        if quantity.endswith(suffix):
            return float(quantity.removesuffix(suffix)) * factor
    return float(quantity[:-1]) / 1000 if quantity.endswith("m") else float(quantity)


class Container:
    """A container of a pod on this kubelet.

    :param told: called whenever its state changed.
    """

    def __init__(self, spec: Object, folder: Path, told: Callable[[], None]) -> None:
        self.spec = spec
        self.name: str = spec["name"]
        self.state: Object = {"waiting": {"reason": "ContainerCreating"}}
        self.last_state: Object = {}
        self.restarts = 0
        self.ready = False
        self.started = False
        self.process: asyncio.subprocess.Process | None = None
        self._folder = folder
        self._told = told
        self._killed_for: str | None = None

    @property
    def log(self) -> Path:
        """Log of the current try; of the last one with ``previous``."""
        return self._folder / f"{self.name}.{self.restarts}.log"

    @property
    def previous_log(self) -> Path:
        """Log of the try before."""
        return self._folder / f"{self.name}.{self.restarts - 1}.log"

    @property
    def exit_code(self) -> int | None:
        """How it ended, if it did."""
        ended = self.state.get("terminated")
        return int(ended["exitCode"]) if ended else None

    def status(self) -> Object:
        """As the pod's status lists it."""
        return {
            "name": self.name,
            "image": self.spec["image"],
            "imageID": "",
            "ready": self.ready,
            "started": self.started,
            "restartCount": self.restarts,
            "state": self.state,
            "lastState": self.last_state,
        }

    def wait_for(self, reason: str, message: str = "") -> None:
        """Say what the container waits for."""
        self.state = {"waiting": {"reason": reason, "message": message}}
        self.ready = False
        self._told()

    async def run(self, argv: list[str], env: dict[str, str]) -> int:
        """Run the process to its end; returns its exit code as Kubernetes states it."""
        began = now()
        self._killed_for = None
        cwd = self.spec.get("workingDir") or str(self._folder)
        try:
            self.process = await asyncio.create_subprocess_exec(
                *argv,
                env=env,
                cwd=cwd,
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
        except OSError as error:
            self.log.write_text(f"{_stamp()} {error}\n")
            return self._end(128, "StartError", str(error), began)
        self.state = {"running": {"startedAt": began}}
        self.started = "startupProbe" not in self.spec
        self.ready = self.started and "readinessProbe" not in self.spec
        self._told()
        watching = [asyncio.create_task(self._probe(kind)) for kind in _PROBES if kind in self.spec]
        watching.append(asyncio.create_task(self._watch_memory()))
        pump = asyncio.create_task(self._pump())
        code = await self.process.wait()
        for task in watching:
            task.cancel()
        await asyncio.wait([pump], timeout=1)
        pump.cancel()
        code = 128 - code if code < 0 else code
        if self._killed_for == "OOMKilled":
            return self._end(OOM_KILLED, "OOMKilled", "", began)
        return self._end(code, "Error" if code else "Completed", "", began)

    def _end(self, code: int, reason: str, message: str, began: str) -> int:
        self.ready = False
        ended = {
            "exitCode": code,
            "reason": reason,
            "message": message,
            "startedAt": began,
            "finishedAt": now(),
        }
        self.state = {"terminated": ended}
        self._told()
        return code

    async def stop(self, grace_s: float) -> None:
        """SIGTERM to its process, SIGKILL to its group when the grace is over."""
        process = self.process
        if process is None or process.returncode is not None:
            return
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.shield(process.wait()), grace_s)
        self.kill()
        await process.wait()

    def kill(self) -> None:
        """SIGKILL to all of it."""
        if self.process:
            family: list[psutil.Process] = []
            with contextlib.suppress(psutil.Error):
                family = psutil.Process(self.process.pid).children(recursive=True)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            for member in family:
                with contextlib.suppress(psutil.Error):
                    member.kill()

    async def _pump(self) -> None:
        assert self.process is not None
        assert self.process.stdout is not None
        with self.log.open("a", encoding="utf-8", buffering=1) as file:
            while line := await self.process.stdout.readline():
                file.write(f"{_stamp()} {line.decode(errors='replace').rstrip()}\n")

    async def _watch_memory(self) -> None:
        limit = (self.spec.get("resources", {}).get("limits") or {}).get("memory")
        while limit and self.process:
            used = 0
            with contextlib.suppress(psutil.Error):
                root = psutil.Process(self.process.pid)
                used = sum(p.memory_info().rss for p in [root, *root.children(recursive=True)])
            if used > amount(limit):
                self._killed_for = "OOMKilled"
                self.kill()
                return
            await asyncio.sleep(_MEMORY_POLL_S)

    async def _probe(self, kind: str) -> None:
        probe = self.spec[kind]
        passed = failed = 0
        await asyncio.sleep(probe.get("initialDelaySeconds", 0))
        while True:
            if kind == "startupProbe" or self.started:
                good = await self._passes(probe)
                passed, failed = (passed + 1, 0) if good else (0, failed + 1)
                if kind == "startupProbe" and good:
                    self.started = True
                    self.ready = "readinessProbe" not in self.spec
                    self._told()
                    return
                if kind == "readinessProbe":
                    self._judge_ready(probe, passed, failed)
                elif failed >= probe["failureThreshold"]:
                    await self.stop(self.spec.get("grace", 5))
                    return
            await asyncio.sleep(probe["periodSeconds"])

    def _judge_ready(self, probe: Object, passed: int, failed: int) -> None:
        ready = self.ready
        if passed >= probe["successThreshold"]:
            ready = True
        elif failed >= probe["failureThreshold"]:
            ready = False
        if ready != self.ready:
            self.ready = ready
            self._told()

    async def _passes(self, probe: Object) -> bool:
        http: Any = probe["httpGet"]
        port = http["port"]
        if isinstance(port, str):
            port = next(p["containerPort"] for p in self.spec["ports"] if p["name"] == port)
        timeout = aiohttp.ClientTimeout(total=probe["timeoutSeconds"])
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.get(f"http://127.0.0.1:{port}{http.get('path', '/')}") as response,
            ):
                return 200 <= response.status < 400
        except (aiohttp.ClientError, asyncio.TimeoutError):
            return False


_PROBES = ("startupProbe", "readinessProbe", "livenessProbe")


def _stamp() -> str:
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%f") + "000Z"
