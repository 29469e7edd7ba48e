"""Wait for a worker's model without holding a slot."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from airflow.triggers.base import TriggerEvent

from airflow_arcadia.exceptions import ArcadiaError, in_lines
from airflow_arcadia.hooks.arcadia import ArcadiaHook
from airflow_arcadia.launchers.renewal import keep_renewed
from airflow_arcadia.launchers.wait import Wait, wait_until_decided
from airflow_arcadia.metrics import worker_failed, worker_ready
from airflow_arcadia.readiness import Failed, Ready
from airflow_arcadia.triggers.settled import SettledTrigger
from airflow_arcadia.worker import WorkerHandle


class ArcadiaModelReadyTrigger(SettledTrigger):
    """Fires once, when the model is ready or never will be: ``{"handle": …, "failed": text or None}``.

    It never ends the worker, however it is left itself: a restarted triggerer goes on waiting.

    :param handle: the worker's handle as a dict.
    :param arcadia_conn_id: connection of type ``arcadia``.
    :param started_at: when the wait began, seconds since the epoch; a restarted triggerer keeps it.
    :param startup_timeout: seconds the worker may take.
    :param poll_interval: seconds between two questions to the worker; its process or pod is watched besides.
    """

    def __init__(
        self,
        handle: Mapping[str, Any],
        arcadia_conn_id: str,
        started_at: float,
        startup_timeout: float,
        poll_interval: float,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.handle = dict(handle)
        self.arcadia_conn_id = arcadia_conn_id
        self.started_at = started_at
        self.startup_timeout = startup_timeout
        self.poll_interval = poll_interval

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Class path and arguments, as Airflow stores them."""
        names = ("handle", "arcadia_conn_id", "started_at", "startup_timeout", "poll_interval")
        return f"{type(self).__module__}.{type(self).__qualname__}", {n: getattr(self, n) for n in names}

    async def wait(self) -> TriggerEvent:
        """Wait until there is something to say."""
        try:
            hook, handle = await ArcadiaHook.loaded(self.arcadia_conn_id), WorkerHandle.from_dict(self.handle)
            outcome = await wait_until_decided(
                model_wait(
                    hook,
                    handle,
                    started_at=self.started_at,
                    startup_timeout_s=self.startup_timeout,
                    poll_interval_s=self.poll_interval,
                    log=self.log,
                )
            )
        except ArcadiaError as error:
            return self._event(in_lines(error))
        count_outcome(outcome, handle, self.started_at)
        return self._event(outcome.sentences if isinstance(outcome, Failed) else None)

    def _event(self, failed: str | None) -> TriggerEvent:
        return TriggerEvent({"handle": self.handle, "failed": failed})  # type: ignore[no-untyped-call]


def count_outcome(outcome: Ready | Failed, handle: WorkerHandle, started_at: float) -> None:
    """Send the metric of how a wait ended."""
    if isinstance(outcome, Ready):
        worker_ready(time.time() - started_at, handle.launcher)
    else:
        worker_failed(handle.launcher)


def model_wait(
    hook: ArcadiaHook,
    handle: WorkerHandle,
    *,
    started_at: float,
    startup_timeout_s: float,
    poll_interval_s: float,
    log: Any,
) -> Wait:
    """The wait for a model, told in the task's log: what it waits for, and the worker's own lines."""
    leases, launcher = hook.leases, hook.launcher(handle.launcher)

    async def api_key() -> str | None:
        return (await launcher.credentials(handle)).api_key

    return Wait(
        launcher=launcher,
        handle=handle,
        api_key=api_key,
        started_at=started_at,
        startup_timeout_s=startup_timeout_s,
        poll_interval_s=poll_interval_s,
        keep_renewed=lambda: keep_renewed(leases, handle.held_by, log),
        say=lambda text: log.info("%s", text),
        # In the task's log they outlive the worker, whose own log goes with it.
        log_line=lambda line: log.info("[%s] %s", handle.name, line),
    )
