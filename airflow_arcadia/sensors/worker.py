"""Wait until a worker's model is truly ready."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import conf
from airflow.sdk import BaseSensorOperator, PokeReturnValue
from airflow.sdk.exceptions import AirflowFailException

from airflow_arcadia.hooks.arcadia import DEFAULT_CONN_ID, ArcadiaHook, fail_without_retry
from airflow_arcadia.launchers.wait import wait_until_decided
from airflow_arcadia.operators._requirements import require_handle
from airflow_arcadia.readiness import Failed, Outcome, Ready, Waiting, decide
from airflow_arcadia.triggers.timeouts import deferral_timeout
from airflow_arcadia.triggers.worker import ArcadiaModelReadyTrigger, count_outcome, model_wait
from airflow_arcadia.validation import PositiveSeconds, Seconds, parse
from airflow_arcadia.worker import DEFAULT_STARTUP_TIMEOUT_S

if TYPE_CHECKING:
    from airflow.sdk import Context

_BEYOND_S = 60.0  # Airflow's own timeouts come after ours, which says why


@dataclass(frozen=True)
class _Waits:
    """Parameters in seconds, validated when the DAG is parsed."""

    startup_timeout: Seconds
    poll_interval: PositiveSeconds


class ArcadiaModelReadySensor(BaseSensorOperator):
    """Waits until the model generates: process alive → model listed → worker answers → one token.

    Returns the worker's handle. A worker that dies fails the wait within ``poll_interval`` plus a second,
    with the cause and its last log lines.

    :param worker: what ``ArcadiaLaunchWorkerOperator`` returned.
    :param startup_timeout: seconds the worker may take.
    :param poll_interval: seconds between two checks.
    :param deferrable: wait in the triggerer, without a worker slot.
    :param arcadia_conn_id: connection of type ``arcadia``.
    """

    template_fields: Sequence[str] = ("worker", "arcadia_conn_id")
    template_fields_renderers = {"worker": "json"}
    ui_color = "#e8f4ea"

    def __init__(
        self,
        *,
        worker: Mapping[str, Any],
        startup_timeout: float = DEFAULT_STARTUP_TIMEOUT_S,
        poll_interval: float = 2.0,
        deferrable: bool | None = None,
        arcadia_conn_id: str = DEFAULT_CONN_ID,
        **kwargs: Any,
    ) -> None:
        waits = parse(_Waits, {"startup_timeout": startup_timeout, "poll_interval": poll_interval}, "")
        super().__init__(
            poke_interval=waits.poll_interval, timeout=waits.startup_timeout + _BEYOND_S, **kwargs
        )
        self.worker = worker
        self.startup_timeout = waits.startup_timeout
        self.poll_interval = waits.poll_interval
        if deferrable is None:
            deferrable = conf.getboolean("operators", "default_deferrable", fallback=False)
        self.deferrable = deferrable
        self.arcadia_conn_id = arcadia_conn_id
        self._said = ""

    def execute(self, context: Context) -> Any:
        """Wait, here or in the triggerer, and return the handle."""
        with fail_without_retry():
            require_handle(self.worker)
        self._started_at = time.time()
        if not self.deferrable and self.mode == "poke":
            return self._wait()
        if not self.deferrable:
            # Every look is a process of its own; the wait began with the first of this attempt.
            first: Any = context["ti"].get_first_reschedule_date(context)
            self._started_at = first.timestamp() if first else self._started_at
            return super().execute(context)
        if self.poke(context).is_done:
            return dict(self.worker)
        self.defer(
            trigger=ArcadiaModelReadyTrigger(
                handle=dict(self.worker),
                arcadia_conn_id=self.arcadia_conn_id,
                started_at=self._started_at,
                startup_timeout=self.startup_timeout,
                poll_interval=self.poll_interval,
            ),
            method_name="execute_complete",
            timeout=deferral_timeout(
                context, self.execution_timeout, timedelta(seconds=self.startup_timeout + _BEYOND_S)
            ),
        )
        return None

    def execute_complete(self, context: Context, event: Mapping[str, Any]) -> dict[str, Any]:
        """Return the handle from the trigger's event. Raises when the worker will not be ready."""
        if event["failed"]:
            raise self._failure(event["failed"])
        self.log.info("The model is ready at %s.", event["handle"]["url"])
        return dict(event["handle"])

    def poke(self, context: Context) -> PokeReturnValue:
        """Look once. Raises when the worker will not be ready."""
        now = time.time()
        with fail_without_retry():
            handle = require_handle(self.worker)
            hook = ArcadiaHook(self.arcadia_conn_id)
            asyncio.run(hook.leases.renew(handle.held_by, now))
            seen = asyncio.run(hook.observe(handle))
        outcome = decide(
            seen, started_at=self._started_at, now=time.time(), startup_timeout_s=self.startup_timeout
        )
        self._tell(outcome, now)
        return PokeReturnValue(isinstance(outcome, Ready), xcom_value=dict(self.worker))

    def _wait(self) -> dict[str, Any]:
        """Hold the slot and wait as the trigger does."""
        with fail_without_retry():
            wait = model_wait(
                ArcadiaHook(self.arcadia_conn_id),
                require_handle(self.worker),
                started_at=self._started_at,
                startup_timeout_s=self.startup_timeout,
                poll_interval_s=self.poll_interval,
                log=self.log,
            )
            self._tell(asyncio.run(wait_until_decided(wait)), self._started_at)
        return dict(self.worker)

    def _tell(self, outcome: Outcome, now: float) -> None:
        if not isinstance(outcome, Waiting):
            count_outcome(outcome, require_handle(self.worker), self._started_at)
        if isinstance(outcome, Failed):
            raise self._failure(outcome.sentences)
        if isinstance(outcome, Waiting) and outcome.what != self._said:
            self._said = outcome.what
            self.log.info("%.0f s: waiting for %s", now - self._started_at, outcome.what)
        if isinstance(outcome, Ready):
            self.log.info("The model is ready after %.1f s.", time.time() - self._started_at)

    def _failure(self, sentences: str) -> AirflowFailException:
        """The error to raise, after its lines are logged: Airflow shows an exception as one long line."""
        for line in sentences.splitlines():
            self.log.error("%s", line)
        return AirflowFailException(sentences)
