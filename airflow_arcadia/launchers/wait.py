"""Wait until a worker's model is ready, or never will be: shared by the sensor and the trigger."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any

from airflow_arcadia.kubernetes.errors import KubernetesUnreachableError
from airflow_arcadia.launchers.base import Launcher
from airflow_arcadia.launchers.probe import LOOK_S, evidence
from airflow_arcadia.loading import Loading
from airflow_arcadia.readiness import (
    Failed,
    Observation,
    ProcessObservation,
    Ready,
    UsageFilter,
    Waiting,
    decide,
)
from airflow_arcadia.worker import WorkerHandle

_FIRST_LOOK_S = 2.0


@dataclass(frozen=True)
class Wait:
    """What to wait for, and who is told about it.

    :param launcher: the one that launched the worker.
    :param api_key: reads the worker's, if it asks for one. Raises when it cannot be read; only an API server
        that is away is waited for.
    :param started_at: when the wait began, seconds since the epoch; a restarted triggerer keeps it.
    :param poll_interval_s: seconds between two questions to the worker; its process is watched besides.
    :param keep_renewed: renews the lease until it is cancelled.
    :param say: takes one sentence whenever what is waited for changes.
    :param log_line: takes the worker's own log lines.
    """

    launcher: Launcher
    handle: WorkerHandle
    api_key: Callable[[], Awaitable[str | None]]
    started_at: float
    startup_timeout_s: float
    poll_interval_s: float
    keep_renewed: Callable[[], Coroutine[Any, Any, None]]
    say: Callable[[str], None]
    log_line: Callable[[str], None] = lambda _: None


class _Latest:
    """The last observation of the process, a signal for a new one, and the worker's key once it was read."""

    def __init__(self) -> None:
        self.process = ProcessObservation(None)
        self.loading = Loading()
        self.changed = asyncio.Event()
        self._key: tuple[str | None] | None = None

    async def keep(self, wait: Wait) -> None:
        async for process in wait.launcher.watch(wait.handle):
            before, self.process = self.process, process
            if (process.alive, process.doing, process.probed) != (before.alive, before.doing, before.probed):
                self.changed.set()

    async def follow(self, wait: Wait) -> None:
        """Pass the worker's log lines on, and read from them how far it is."""
        usage = UsageFilter()
        async for line in wait.launcher.log_lines(wait.handle):
            self.loading.read(line)
            if not usage.hides(line):
                wait.log_line(line)

    async def ask(self, wait: Wait) -> Observation:
        """What the worker says. Raises what says that its key will not be readable later either."""
        process = self.process
        if self._key is None:
            try:
                self._key = (await asyncio.wait_for(wait.api_key(), LOOK_S),)
            except asyncio.TimeoutError:
                return Observation(process, said=f"its API key could not be read within {LOOK_S:g} s")
            except KubernetesUnreachableError as error:
                return Observation(process, said=error.what)
        return await evidence(process, wait.handle, self._key[0])


async def wait_until_decided(wait: Wait) -> Ready | Failed:
    """Block until there is an outcome. Raises what the launcher or the lease says against waiting on."""
    latest = _Latest()
    helpers = [
        asyncio.ensure_future(helper)
        for helper in (latest.keep(wait), wait.keep_renewed(), latest.follow(wait))
    ]
    try:
        return await _decided(wait, latest, helpers)
    finally:
        for helper in helpers:
            helper.cancel()
        await asyncio.gather(*helpers, return_exceptions=True)


async def _decided(wait: Wait, latest: _Latest, helpers: Sequence[asyncio.Future[None]]) -> Ready | Failed:
    said = ""
    await _first(latest.changed.wait(), *helpers, timeout_s=_FIRST_LOOK_S)
    while True:
        latest.changed.clear()
        seen = await _evidence(wait, latest)
        outcome = decide(
            seen, started_at=wait.started_at, now=time.time(), startup_timeout_s=wait.startup_timeout_s
        )
        if not isinstance(outcome, Waiting):
            return outcome
        if outcome.what != said:
            said = outcome.what
            wait.say(f"{time.time() - wait.started_at:.0f} s: waiting for {said}")
        await _first(latest.changed.wait(), *helpers, timeout_s=wait.poll_interval_s)


async def _evidence(wait: Wait, latest: _Latest) -> Observation:
    """Ask the worker; a process that dies meanwhile is not waited for any longer."""
    process = latest.process
    if process.alive is False:
        return Observation(process)
    asking = asyncio.ensure_future(latest.ask(wait))
    try:
        while not asking.done() and latest.process.alive is not False:
            latest.changed.clear()
            await _first(latest.changed.wait(), asking)
    finally:
        if not asking.done():
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
    if latest.process.alive is False:
        return Observation(latest.process)
    return replace(asking.result(), process=latest.process, loading=str(latest.loading))


async def _first(
    event: Awaitable[object], *others: asyncio.Future[Any], timeout_s: float | None = None
) -> None:
    """Until the event or one of ``others`` is over; raises what one of ``others`` raised."""
    waiting = asyncio.ensure_future(event)
    await asyncio.wait({waiting, *others}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await waiting
    for other in others:
        if other.done():
            other.result()
