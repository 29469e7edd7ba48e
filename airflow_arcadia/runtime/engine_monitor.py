"""Watches the engine from within its server: hangs, recoveries, and a worker that nobody uses any more."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from airflow_arcadia.exceptions import UnreadableLeaseError
from airflow_arcadia.lease_store import read_lease_file
from airflow_arcadia.runtime.asgi_client import AsgiClient
from airflow_arcadia.runtime.engine_health import EngineHealth, Look, count_progress, forgotten

_LOOKS_PER_TIMEOUT = 10
_SHORTEST_INTERVAL_S, _LONGEST_INTERVAL_S = 0.1, 5.0
_METRICS_TIMEOUT_S = 5.0


class Use(Protocol):
    """What the server knows of its use."""

    @property
    def running(self) -> int:
        """Requests that wait for the engine."""

    @property
    def requests(self) -> int:
        """Requests so far."""

    @property
    def busy(self) -> bool:
        """Whether a batch runs in the worker."""


@dataclass(frozen=True)
class Limits:
    """When the monitor acts, in seconds; 0 is never.

    :param hang_timeout: without a token while requests run, until the engine counts as hung.
    :param hang_restart_timeout: hung, until the worker is ended.
    :param idle_timeout: without a request, until the worker is ended; None: 15 minutes for a worker whose
        lease is not renewed either, never for one that sees no lease.
    """

    hang_timeout: float = 60.0
    hang_restart_timeout: float = 120.0
    idle_timeout: float | None = None


DEFAULT_IDLE_TIMEOUT_S = 900.0


class EngineMonitor:
    """See the module.

    :param client: calls the server's application, for its counters.
    :param probe: generates one token; called while the engine hangs, so that a recovery is seen.
    :param lease_file: file of the worker's lease, if it sees one.
    :param on_change: called with the cause when the engine hangs, and with None when it has recovered.
    :param on_end: called once, with the reason and whether the engine hangs, when the worker must end.
    """

    def __init__(
        self,
        client: AsgiClient,
        use: Use,
        limits: Limits,
        *,
        probe: Callable[[], Awaitable[object]],
        lease_file: str | None,
        on_change: Callable[[str | None], Awaitable[None]],
        on_end: Callable[[str, bool], None],
    ) -> None:
        self._client, self._use, self._limits = client, use, limits
        self._probe, self._lease_file = probe, lease_file
        self._on_change, self._on_end = on_change, on_end
        self._requests = 0
        self._ending = False
        shortest = min(filter(None, (limits.hang_timeout, limits.idle_timeout)), default=_LONGEST_INTERVAL_S)
        interval = shortest / _LOOKS_PER_TIMEOUT
        self._interval = min(max(interval, _SHORTEST_INTERVAL_S), _LONGEST_INTERVAL_S)
        self.health = EngineHealth.start(time.monotonic())

    async def run(self) -> None:
        """Watch until cancelled."""
        self.health = EngineHealth.start(time.monotonic())
        self._requests = self._use.requests
        probing: asyncio.Task[object] | None = None
        try:
            while True:
                await asyncio.sleep(self._interval)
                before, self.health = self.health, await self._look(probing)
                if self.health.hung_since is not None and before.hung_since is None:
                    await self._on_change(self.cause)
                elif self.health.hung_since is None and before.hung_since is not None:
                    await self._on_change(None)
                if self.health.hung_since is not None and (probing is None or probing.done()):
                    probing = asyncio.create_task(self._try())
                await self._end_if_due()
        finally:
            if probing is not None:
                probing.cancel()

    @property
    def cause(self) -> str:
        """Why the engine counts as hung."""
        return f"the engine hangs: no token for {self._limits.hang_timeout:g} s while requests run"

    async def _look(self, probing: asyncio.Task[object] | None) -> EngineHealth:
        running = self._use.running + (probing is not None and not probing.done())
        requests, count = self._use.requests, await self._count()
        used = bool(self._use.running) or self._use.busy or requests != self._requests
        self._requests = requests
        look = Look(time.monotonic(), count, running, used)
        return self.health.after(look, hang_timeout=self._limits.hang_timeout, interval=self._interval)

    async def _count(self) -> float | None:
        with suppress(asyncio.TimeoutError):
            answer = await asyncio.wait_for(self._client.call("GET", "/metrics"), _METRICS_TIMEOUT_S)
            return count_progress(answer.body) if answer.status == 200 else None
        return None

    async def _try(self) -> object:
        # Whatever it answers: only the counters tell that the engine moves again.
        with suppress(Exception):
            return await self._probe()
        return None

    async def _end_if_due(self) -> None:
        now, health, limits = time.monotonic(), self.health, self._limits
        if self._ending:
            return
        if health.hung_since is not None:
            hung_for = now - health.hung_since
            if limits.hang_restart_timeout and hung_for >= limits.hang_restart_timeout:
                self._ending = True
                self._on_end(f"{self.cause}, and has not recovered for {hung_for:.0f} s", True)
        elif await self._is_forgotten(now - health.used_at):
            self._ending = True
            self._on_end(f"no request for {now - health.used_at:.0f} s", False)

    async def _is_forgotten(self, idle_s: float) -> bool:
        wanted = self._limits.idle_timeout
        if wanted is not None:
            return bool(wanted) and idle_s >= wanted
        if self._lease_file is None or idle_s < DEFAULT_IDLE_TIMEOUT_S:
            return False
        try:
            lease = await asyncio.to_thread(read_lease_file, Path(self._lease_file))
        except (OSError, UnreadableLeaseError):
            return False
        return lease is not None and forgotten(
            idle_s,
            idle_timeout=DEFAULT_IDLE_TIMEOUT_S,
            renewed_s_ago=time.time() - lease.renewed_at,
            lease_duration=lease.duration_s,
        )
