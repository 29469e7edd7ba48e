"""Wait for a batch that a worker runs itself, without holding a slot."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_arcadia.batch import Endpoint, Progress
from airflow_arcadia.batch.remote import Completed, Ended, RemoteBatches, Running, judge
from airflow_arcadia.exceptions import ArcadiaError, BatchError
from airflow_arcadia.hooks.arcadia import make_launcher
from airflow_arcadia.launchers.watch import lost_error
from airflow_arcadia.lease_store import LeaseStore
from airflow_arcadia.worker import WorkerHandle

LEASE_RENEWAL_S = 30.0


class ArcadiaBatchInferenceTrigger(BaseTrigger):
    """Fires once, when the batch is done or ended: ``{"summary": …, "failed": text, "retryable": …}``.

    It only polls: a restarted triggerer, or an Airflow that is down, does not touch the batch. When a user
    ends the task, the batch is cancelled.

    :param handle: the worker's handle as a dict.
    :param batch_id: the batch at the worker.
    :param state_dir: root of the lease store.
    :param worker_python: Python of the worker's environment.
    :param poll_interval: seconds between two looks.
    """

    def __init__(
        self,
        handle: Mapping[str, Any],
        batch_id: str,
        state_dir: str,
        worker_python: str,
        poll_interval: float,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.handle = dict(handle)
        self.batch_id = batch_id
        self.state_dir = state_dir
        self.worker_python = worker_python
        self.poll_interval = poll_interval

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Class path and arguments, as Airflow stores them."""
        names = ("handle", "batch_id", "state_dir", "worker_python", "poll_interval")
        return f"{type(self).__module__}.{type(self).__qualname__}", {n: getattr(self, n) for n in names}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Look until there is something to say."""
        handle = WorkerHandle.from_dict(self.handle)
        store = LeaseStore(Path(self.state_dir))
        launcher = make_launcher(handle.launcher, store, self.worker_python)
        batches = await self._batches()
        said: Progress | None = None
        renew_at = 0.0
        while True:
            try:
                if time.time() >= renew_at:
                    await asyncio.to_thread(store.update, handle.lease, lambda held: held.renew(time.time()))
                    renew_at = time.time() + LEASE_RENEWAL_S
                state = judge(await batches.get(self.batch_id))
            except BatchError as error:
                seen = await launcher.observe(handle)
                if seen.alive is False:
                    yield _event(failed=str(lost_error({handle.name: seen})))
                    return
                if not error.retryable:
                    yield _event(failed=str(error))
                    return
                # A server that is busy or being restarted: the batch may go on.
                self.log.warning("%s", error)
            except ArcadiaError as error:
                yield _event(failed=str(error))
                return
            else:
                if isinstance(state, Completed):
                    yield _event(summary=state.summary)
                    return
                if isinstance(state, Ended):
                    yield _event(failed=state.what, retryable=True)
                    return
                if isinstance(state, Running) and state.progress and state.progress != said:
                    said = state.progress
                    self.log.info("%s", said)
            await asyncio.sleep(self.poll_interval)

    async def on_kill(self) -> None:
        """A user ended the task: cancel the batch; what is committed is kept."""
        await (await self._batches()).cancel(self.batch_id)

    async def _batches(self) -> RemoteBatches:
        handle = WorkerHandle.from_dict(self.handle)
        key = None
        if handle.api_key_file:
            key = (await asyncio.to_thread(Path(handle.api_key_file).read_text, encoding="utf-8")).strip()
        return RemoteBatches(Endpoint(handle.url, key))


def _event(
    summary: Mapping[str, Any] | None = None, failed: str | None = None, *, retryable: bool = False
) -> TriggerEvent:
    payload = {"summary": summary, "failed": failed, "retryable": retryable}
    return TriggerEvent(payload)  # type: ignore[no-untyped-call]
