"""Wait for a batch that a worker runs itself, without holding a slot."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from airflow.triggers.base import TriggerEvent

from airflow_arcadia.batch import Progress
from airflow_arcadia.batch.batch_api import (
    BatchUnknownError,
    Completed,
    Ended,
    RemoteBatches,
    Running,
    State,
    judge,
)
from airflow_arcadia.exceptions import ArcadiaError, BatchError, in_lines
from airflow_arcadia.hooks.arcadia import ArcadiaHook
from airflow_arcadia.kubernetes.errors import KubernetesUnreachableError
from airflow_arcadia.launchers.base import Launcher
from airflow_arcadia.launchers.monitor import lost_error
from airflow_arcadia.launchers.renewal import keep_renewed
from airflow_arcadia.triggers.settled import SettledTrigger
from airflow_arcadia.worker import WorkerHandle

UNREACHABLE_TIMEOUT_S = 600.0
"""How long a worker that lives may leave every question about its batch unanswered."""


class ArcadiaBatchInferenceTrigger(SettledTrigger):
    """Fires once, when the batch is done or ended: ``{"summary": …, "failed": text, "retryable": …}``.

    Where the worker was started anew and does not know the batch, the event has ``resubmitted`` as well.

    It only polls: a restarted triggerer, or an Airflow that is down, does not touch the batch. When a user
    ends the task, the batch is cancelled.

    :param handle: the worker's handle as a dict.
    :param batch_id: the batch at the worker.
    :param arcadia_conn_id: connection of type ``arcadia``.
    :param poll_interval: seconds between two looks.
    :param unreachable_timeout: seconds that looks may fail one after the other before the trigger fires.
    :param resubmitted: how often the batch was submitted again, because its worker was started anew.
    :param submission: of the attempt that waits; its end ends no batch that another has submitted since.
    """

    def __init__(
        self,
        handle: Mapping[str, Any],
        batch_id: str,
        arcadia_conn_id: str,
        poll_interval: float,
        unreachable_timeout: float = UNREACHABLE_TIMEOUT_S,
        *,
        resubmitted: int = 0,
        submission: str | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.handle = dict(handle)
        self.batch_id = batch_id
        self.arcadia_conn_id = arcadia_conn_id
        self.poll_interval = poll_interval
        self.unreachable_timeout = unreachable_timeout
        self.resubmitted = resubmitted
        self.submission = submission

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Class path and arguments, as Airflow stores them."""
        names = (
            "handle",
            "batch_id",
            "arcadia_conn_id",
            "poll_interval",
            "unreachable_timeout",
            "resubmitted",
            "submission",
        )
        return f"{type(self).__module__}.{type(self).__qualname__}", {n: getattr(self, n) for n in names}

    async def wait(self) -> TriggerEvent:
        """Look until there is something to say."""
        handle = WorkerHandle.from_dict(self.handle)
        try:
            hook = await ArcadiaHook.loaded(self.arcadia_conn_id)
            leases, launcher = hook.leases, hook.launcher(handle.launcher)
            batches = await self._batches(hook, handle)
        except ArcadiaError as error:
            return _event(failed=in_lines(error), retryable=isinstance(error, KubernetesUnreachableError))
        renewing = asyncio.ensure_future(keep_renewed(leases, handle.held_by, self.log))
        try:
            return await self._ended(handle, launcher, batches, renewing)
        finally:
            renewing.cancel()
            await asyncio.gather(renewing, return_exceptions=True)

    async def _batches(self, hook: ArcadiaHook, handle: WorkerHandle) -> RemoteBatches:
        """The worker's Batch API. Raises :class:`ArcadiaError` when its key cannot be read."""
        began = time.monotonic()
        while True:
            try:
                return await hook.remote_batches(handle)
            except KubernetesUnreachableError as error:  # which does not touch the batch
                if time.monotonic() - began >= self.unreachable_timeout:
                    raise
                self.log.warning("%s", error)
            await asyncio.sleep(self.poll_interval)

    async def _ended(
        self, handle: WorkerHandle, launcher: Launcher, batches: RemoteBatches, renewing: asyncio.Future[Any]
    ) -> TriggerEvent:
        """Poll until the batch has ended, or cannot be waited for any longer."""
        said: Progress | None = None
        answered_at = time.monotonic()
        while True:
            try:
                state: State = judge(await batches.get(self.batch_id))
                answered_at = time.monotonic()
            except BatchError as error:
                if (event := await self._judge_silence(error, handle, launcher, answered_at)) is not None:
                    return event
            else:
                if isinstance(state, Completed):
                    return _event(summary=state.summary)
                if isinstance(state, Ended):
                    return _event(failed=state.what, retryable=True)
                if isinstance(state, Running) and state.progress and state.progress != said:
                    said = state.progress
                    self.log.info("%s", said)
                if renewing.done():
                    # The batch was asked first: one that is done needs no lease any more.
                    return _event(failed=str(renewing.exception()))
            await asyncio.sleep(self.poll_interval)

    async def _judge_silence(
        self, error: BatchError, handle: WorkerHandle, launcher: Launcher, answered_at: float
    ) -> TriggerEvent | None:
        """What a question that was not answered means; None: ask again."""
        try:
            seen = await launcher.observe(handle)
        except ArcadiaError as unread:  # could not read is never absent
            self.log.warning("%s", unread)
        else:
            if seen.alive is False:
                return _event(failed=in_lines(lost_error({handle.name: seen})))
        if isinstance(error, BatchUnknownError):
            return _event(failed=in_lines(error), retryable=True, resubmitted=self.resubmitted)
        if not error.retryable:
            return _event(failed=in_lines(error))
        silent_s = time.monotonic() - answered_at
        if silent_s >= self.unreachable_timeout:
            return _event(
                failed=f"No answer about {self.batch_id} for {silent_s:.0f} s.\n{in_lines(error)}",
                retryable=True,
            )
        self.log.warning("%s", error)
        return None

    async def on_kill(self) -> None:
        """A user ended the task: cancel the batch; what is committed is kept."""
        try:
            hook = await ArcadiaHook.loaded(self.arcadia_conn_id)
            handle = WorkerHandle.from_dict(self.handle)
            batches = await hook.remote_batches(handle)
            await batches.cancel(self.batch_id, self.submission)
        except ArcadiaError as error:
            # The teardown ends the worker and the batch with it.
            self.log.warning("%s was not cancelled: %s", self.batch_id, error)


def _event(
    summary: Mapping[str, Any] | None = None,
    failed: str | None = None,
    *,
    retryable: bool = False,
    resubmitted: int | None = None,
) -> TriggerEvent:
    payload: dict[str, Any] = {"summary": summary, "failed": failed, "retryable": retryable}
    if resubmitted is not None:
        payload["resubmitted"] = resubmitted
    return TriggerEvent(payload)  # type: ignore[no-untyped-call]
