"""Wait for a worker's model without holding a slot."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_arcadia.exceptions import ArcadiaError
from airflow_arcadia.hooks.arcadia import make_launcher
from airflow_arcadia.launchers.observe import observe
from airflow_arcadia.lease_store import LeaseStore
from airflow_arcadia.readiness import Failed, Ready, Waiting, decide
from airflow_arcadia.worker import WorkerHandle

LEASE_RENEWAL_S = 30.0


class ArcadiaModelReadyTrigger(BaseTrigger):
    """Fires once, when the model is ready or never will be: ``{"handle": …, "failed": text or None}``.

    It never ends the worker, however it is left itself: a restarted triggerer goes on waiting.

    :param handle: the worker's handle as a dict.
    :param state_dir: root of the lease store.
    :param worker_python: Python of the worker's environment.
    :param started_at: when the wait began, seconds since the epoch; a restarted triggerer keeps it.
    :param startup_timeout: seconds the worker may take.
    :param poll_interval: seconds between two looks.
    """

    def __init__(  # noqa: PLR0917 - Airflow makes triggers by keyword
        self,
        handle: Mapping[str, Any],
        state_dir: str,
        worker_python: str,
        started_at: float,
        startup_timeout: float,
        poll_interval: float,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.handle = dict(handle)
        self.state_dir = state_dir
        self.worker_python = worker_python
        self.started_at = started_at
        self.startup_timeout = startup_timeout
        self.poll_interval = poll_interval

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Class path and arguments, as Airflow stores them."""
        names = ("handle", "state_dir", "worker_python", "started_at", "startup_timeout", "poll_interval")
        return f"{type(self).__module__}.{type(self).__qualname__}", {n: getattr(self, n) for n in names}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Look until there is something to say."""
        handle = WorkerHandle.from_dict(self.handle)
        store = LeaseStore(Path(self.state_dir))
        launcher = make_launcher(handle.launcher, store, self.worker_python)
        said, renew_at = "", 0.0
        while True:
            if time.time() >= renew_at:
                try:
                    await asyncio.to_thread(store.update, handle.lease, lambda held: held.renew(time.time()))
                except ArcadiaError as error:
                    yield self._event(str(error))
                    return
                renew_at = time.time() + LEASE_RENEWAL_S
            outcome = decide(
                await observe(launcher, handle),
                started_at=self.started_at,
                now=time.time(),
                startup_timeout_s=self.startup_timeout,
            )
            if isinstance(outcome, Ready):
                yield self._event(None)
                return
            if isinstance(outcome, Failed):
                yield self._event(outcome.sentences)
                return
            if isinstance(outcome, Waiting) and outcome.what != said:
                said = outcome.what
                self.log.info("%.0f s: waiting for %s", time.time() - self.started_at, said)
            await asyncio.sleep(self.poll_interval)

    def _event(self, failed: str | None) -> TriggerEvent:
        return TriggerEvent({"handle": self.handle, "failed": failed})  # type: ignore[no-untyped-call]
