"""Wait for a batch that a worker runs itself, without holding a slot."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_arcadia.batch import Endpoint, Progress
from airflow_arcadia.batch.batch_api import Completed, Ended, RemoteBatches, Running, judge
from airflow_arcadia.exceptions import ArcadiaError, BatchError
from airflow_arcadia.hooks.arcadia import ArcadiaHook
from airflow_arcadia.launchers.monitor import lost_error
from airflow_arcadia.launchers.wait import LEASE_RENEWAL_S
from airflow_arcadia.worker import WorkerHandle


class ArcadiaBatchInferenceTrigger(BaseTrigger):
    """Fires once, when the batch is done or ended: ``{"summary": …, "failed": text, "retryable": …}``.

    It only polls: a restarted triggerer, or an Airflow that is down, does not touch the batch. When a user
    ends the task, the batch is cancelled.

    :param handle: the worker's handle as a dict.
    :param batch_id: the batch at the worker.
    :param arcadia_conn_id: connection of type ``arcadia``.
    :param poll_interval: seconds between two looks.
    """

    def __init__(
        self,
        handle: Mapping[str, Any],
        batch_id: str,
        arcadia_conn_id: str,
        poll_interval: float,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.handle = dict(handle)
        self.batch_id = batch_id
        self.arcadia_conn_id = arcadia_conn_id
        self.poll_interval = poll_interval

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Class path and arguments, as Airflow stores them."""
        names = ("handle", "batch_id", "arcadia_conn_id", "poll_interval")
        return f"{type(self).__module__}.{type(self).__qualname__}", {n: getattr(self, n) for n in names}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Look until there is something to say."""
        handle = WorkerHandle.from_dict(self.handle)
        try:
            hook = await ArcadiaHook.loaded(self.arcadia_conn_id)
            leases, launcher = hook.leases, hook.launcher(handle.launcher)
        except ArcadiaError as error:
            yield _event(failed=str(error))
            return
        batches = RemoteBatches(Endpoint(handle.url, hook.api_key))
        said: Progress | None = None
        renew_at = 0.0
        while True:
            try:
                if time.time() >= renew_at:
                    await leases.renew(handle.lease, time.time())
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
        hook = await ArcadiaHook.loaded(self.arcadia_conn_id)
        await RemoteBatches(Endpoint(self.handle["url"], hook.api_key)).cancel(self.batch_id)


def _event(
    summary: Mapping[str, Any] | None = None, failed: str | None = None, *, retryable: bool = False
) -> TriggerEvent:
    payload = {"summary": summary, "failed": failed, "retryable": retryable}
    return TriggerEvent(payload)  # type: ignore[no-untyped-call]
