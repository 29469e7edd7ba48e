"""One container: its process, its probes, its log, and the state the API is told."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.loopback_cluster.api.store import now
from tests.loopback_cluster.api.values import amount
from tests.loopback_cluster.kubelet import probes, processes
from tests.loopback_cluster.kubelet.client import Object

_MEMORY_POLL_S = 0.4
_CHUNK = 1 << 16
_LOG_TAIL = 2048  # bytes of the log that FallbackToLogsOnError keeps
OOM_KILLED = 137


@dataclass(frozen=True)
class Run:
    """How a container is to run.

    :param end_message: file whose text becomes the ended container's message.
    """

    argv: list[str]
    env: dict[str, str]
    cwd: str
    end_message: Path


class Container:
    """A container of a pod on this kubelet.

    :param mark: what its processes are known by.
    :param grace_s: how long it may take to end when a probe wants it to.
    :param changed: called whenever its state changed.
    :param tell: records an event: reason, message.
    """

    def __init__(
        self,
        spec: Object,
        folder: Path,
        mark: str,
        *,
        grace_s: float,
        changed: Callable[[], None],
        tell: Callable[[str, str], None],
    ) -> None:
        self.spec = spec
        self.name: str = spec["name"]
        self.mark = f"{mark}/{self.name}"
        self.state: Object = {"waiting": {"reason": "ContainerCreating"}}
        self.last_state: Object = {}
        self.restarts = 0
        self.ready = False
        self.started = False
        self.process: asyncio.subprocess.Process | None = None
        self._folder = folder
        self._grace_s = grace_s
        self._changed = changed
        self._tell = tell
        self._killed_for: str | None = None

    @property
    def log(self) -> Path:
        """Log of the current try."""
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
        waiting = {"waiting": {"reason": reason, "message": message}}
        if waiting != self.state:
            self.state = waiting
            self.ready = self.started = False
            self._changed()

    async def run(self, how: Run) -> int:
        """Run the process to its end; returns its exit code as Kubernetes states it."""
        began = now()
        self._killed_for = None
        try:
            self.process = await self._start(how, how.argv)
        except OSError as error:
            self.log.write_text(f"{_stamp()} {error}\n", encoding="utf-8")
            message = f'failed to start container: exec: "{how.argv[0]}": {error.strerror}'
            return self._end(128, "StartError", message, began)
        self.state = {"running": {"startedAt": began}}
        self.started = "startupProbe" not in self.spec
        self._has_started = asyncio.Event()
        self.ready = self.started and "readinessProbe" not in self.spec
        self._changed()
        watching = [asyncio.create_task(self._probe(p, how)) for p in probes.PROBES if p in self.spec]
        watching.append(asyncio.create_task(self._watch_memory()))
        pump = asyncio.create_task(self._pump(self.process))
        try:
            code = await self.process.wait()
        finally:
            for task in watching:
                task.cancel()
            # What the main process started ends with it, as in a PID namespace.
            self.kill()
            await asyncio.wait([pump], timeout=1)
            pump.cancel()
        code = 128 - code if code < 0 else code
        if self._killed_for == "OOMKilled":
            return self._end(OOM_KILLED, "OOMKilled", "", began)
        message = self._last_words(how.end_message, code)
        return self._end(code, "Error" if code else "Completed", message, began)

    async def _start(self, how: Run, argv: list[str]) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *argv,
            # Ray and vLLM rename their processes; without SPT_NOENV that overwrites the mark.
            env=how.env | {processes.MARK: self.mark, "SPT_NOENV": "1"},
            cwd=how.cwd,
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def _last_words(self, file: Path, code: int) -> str:
        text = file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""
        if not text and code and self.spec.get("terminationMessagePolicy") == "FallbackToLogsOnError":
            lines = self.log.read_text(encoding="utf-8").splitlines(keepends=True)[-80:]
            text = "".join(line.partition(" ")[2] for line in lines)
        return text[-_LOG_TAIL:]

    def _end(self, code: int, reason: str, message: str, began: str) -> int:
        self.ready = self.started = False
        ended = {"exitCode": code, "reason": reason, "startedAt": began, "finishedAt": now()}
        self.state = {"terminated": {**ended, **({"message": message} if message else {})}}
        self._changed()
        return code

    async def stop(self, grace_s: float) -> None:
        """SIGTERM to its process, SIGKILL to all of it when the grace is over."""
        process = self.process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.shield(process.wait()), grace_s)
        self.kill()
        await process.wait()

    def kill(self) -> None:
        """SIGKILL to all of it."""
        if self.process:
            processes.kill(self.mark)

    async def _pump(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        rest = b""
        with self.log.open("a", encoding="utf-8", buffering=1) as file:
            while chunk := await process.stdout.read(_CHUNK):
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    file.write(f"{_stamp()} {line.decode(errors='replace')}\n")
            if rest:
                file.write(f"{_stamp()} {rest.decode(errors='replace')}\n")

    async def _watch_memory(self) -> None:
        limit = (self.spec.get("resources", {}).get("limits") or {}).get("memory")
        while limit:
            if processes.memory(processes.of(self.mark)) > amount(limit):
                self._killed_for = "OOMKilled"
                self.kill()
                return
            await asyncio.sleep(_MEMORY_POLL_S)

    async def _probe(self, kind: str, how: Run) -> None:
        probe = self.spec[kind]
        passed = failed = 0
        await asyncio.sleep(probe.get("initialDelaySeconds") or 0)
        while True:
            if kind == "startupProbe" or self.started:
                why = await probes.fault(
                    probe, self.spec.get("ports") or [], lambda argv: self._start(how, argv)
                )
                passed, failed = (passed + 1, 0) if why is None else (0, failed + 1)
                if why is not None:
                    self._tell("Unhealthy", f"{kind.removesuffix('Probe').capitalize()} probe failed: {why}")
                if await self._judge(kind, probe, passed, failed):
                    return
            await self._pause(kind, probe["periodSeconds"])

    async def _pause(self, kind: str, seconds: float) -> None:
        """Until the next try: at once where the container has just started, as the kubelet does it."""
        if kind == "startupProbe" or self.started:
            await asyncio.sleep(seconds)
            return
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._has_started.wait(), seconds)

    async def _judge(self, kind: str, probe: Object, passed: int, failed: int) -> bool:
        """Act on a probe's result; True when it is not to be tried again."""
        if kind == "readinessProbe":
            ready = self.ready
            if passed >= probe["successThreshold"]:
                ready = True
            elif failed >= probe["failureThreshold"]:
                ready = False
            if ready != self.ready:
                self.ready = ready
                self._changed()
        elif failed >= probe["failureThreshold"]:
            word = kind.removesuffix("Probe")
            self._tell("Killing", f"Container {self.name} failed {word} probe, will be restarted")
            await self.stop(probe.get("terminationGracePeriodSeconds") or self._grace_s)
            return True
        elif kind == "startupProbe" and passed:
            self.started = True
            self.ready = "readinessProbe" not in self.spec
            self._has_started.set()
            self._changed()
            return True
        return False


def _stamp() -> str:
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%f") + "000Z"
