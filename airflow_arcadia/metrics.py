"""Counters, gauges and timers of batches and workers, through Airflow's own StatsD or OpenTelemetry.

``docs/reference/metrics.md`` says what each means, and the values of its tags. A backend that fails never
fails a task.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

from airflow.providers.common.compat.sdk import Stats

from airflow_arcadia.batch import BatchSummary, Progress
from airflow_arcadia.launchers.reaper import Report

BATCH_ROWS = "arcadia.batch.rows"
BATCH_FAILED = "arcadia.batch.failed"
BATCH_TOKENS = "arcadia.batch.tokens"
BATCH_SECONDS = "arcadia.batch.seconds"
BATCH_ENDED = "arcadia.batch.ended"
BATCH_ROWS_DONE = "arcadia.batch.rows_done"
BATCH_ROWS_TOTAL = "arcadia.batch.rows_total"
BATCH_TOKENS_PER_S = "arcadia.batch.tokens_per_s"
WORKER_READY_SECONDS = "arcadia.worker.ready_seconds"
WORKER_FAILED = "arcadia.worker.failed"
GPUS_HELD = "arcadia.gpus_held"
LEASES_HELD = "arcadia.leases_held"
LEASES_LAPSED = "arcadia.leases_lapsed"
LEASES_REAPED = "arcadia.leases_reaped"

NAMES = (
    *(BATCH_ROWS, BATCH_FAILED, BATCH_TOKENS, BATCH_SECONDS, BATCH_ENDED),
    *(BATCH_ROWS_DONE, BATCH_ROWS_TOTAL, BATCH_TOKENS_PER_S),
    *(WORKER_READY_SECONDS, WORKER_FAILED),
    *(GPUS_HELD, LEASES_HELD, LEASES_LAPSED, LEASES_REAPED),
)

log = logging.getLogger(__name__)


class BatchMetrics:
    """What one attempt of a batch adds to the metrics. An attempt that resumes counts its own rows only.

    :param tags: of every metric: ``dag_id`` and ``task_id``.
    """

    def __init__(self, tags: Mapping[str, str]) -> None:
        self._tags = dict(tags)
        self._before: Progress | None = None

    def progress(self, progress: Progress) -> None:
        """Set the gauges, and count what was done since the call before; the first one is where it began."""
        before = self._before or progress
        self._before = progress
        gauge(BATCH_ROWS_DONE, progress.done, self._tags)
        gauge(BATCH_ROWS_TOTAL, progress.total, self._tags)
        gauge(BATCH_TOKENS_PER_S, progress.tokens_per_s, self._tags)
        self._count_rows(progress.ok - before.ok, progress.failed - before.failed)
        self._count_tokens(
            progress.prompt_tokens - before.prompt_tokens,
            progress.completion_tokens - before.completion_tokens,
        )

    def finished(self, summary: BatchSummary) -> None:
        """Count a batch of which :meth:`progress` was told; one that an earlier attempt finished is not."""
        if self._before is not None:
            self._count_end(summary)

    def finished_in_worker(self, summary: BatchSummary) -> None:
        """Count all of a batch that the worker ran: its rows and tokens as a whole."""
        self._count_rows(summary.ok, summary.failed)
        self._count_tokens(summary.prompt_tokens, summary.completion_tokens)
        self._count_end(summary)

    def failed(self) -> None:
        """Count an attempt that ended before its batch was done."""
        count(BATCH_ENDED, 1, {**self._tags, "outcome": "failed"})

    def _count_end(self, summary: BatchSummary) -> None:
        time(BATCH_SECONDS, summary.seconds, self._tags)
        count(BATCH_ENDED, 1, {**self._tags, "outcome": "success"})

    def _count_rows(self, ok: int, failed: int) -> None:
        # A damaged segment's rows are answered again: they are counted again, never taken back.
        count(BATCH_ROWS, ok, {**self._tags, "outcome": "ok"})
        count(BATCH_ROWS, failed, {**self._tags, "outcome": "failed"})
        count(BATCH_FAILED, failed, self._tags)

    def _count_tokens(self, prompt: int, completion: int) -> None:
        count(BATCH_TOKENS, prompt, {**self._tags, "kind": "prompt"})
        count(BATCH_TOKENS, completion, {**self._tags, "kind": "completion"})


def worker_ready(seconds: float, launcher: str) -> None:
    """A worker's model generates, so many seconds after the wait for it began."""
    time(WORKER_READY_SECONDS, seconds, {"launcher": launcher})


def worker_failed(launcher: str) -> None:
    """A worker ended, or took too long, before its model was ready."""
    count(WORKER_FAILED, 1, {"launcher": launcher})


def swept(conn_id: str, report: Report) -> None:
    """What a reaper found under the leases of one connection."""
    tags = {"conn_id": conn_id}
    gauge(GPUS_HELD, report.gpus_held, tags)
    gauge(LEASES_HELD, len(report.kept), tags)
    gauge(LEASES_LAPSED, len(report.lapsed), tags)
    count(LEASES_REAPED, sum(not item.left for item in report.reaped), tags)


def count(name: str, by: int, tags: Mapping[str, str]) -> None:
    """Add to a counter; nothing where there is nothing to add."""
    if by > 0:
        _send(Stats.incr, name, by, tags)


def gauge(name: str, value: float, tags: Mapping[str, str]) -> None:
    """Set a gauge."""
    _send(Stats.gauge, name, value, tags)


def time(name: str, seconds: float, tags: Mapping[str, str]) -> None:
    """Record a duration."""
    _send(Stats.timing, name, timedelta(seconds=seconds), tags)


def _send(send: Callable[..., Any], name: str, value: Any, tags: Mapping[str, str]) -> None:
    try:
        send(name, value, tags=dict(tags))
    except Exception:  # a backend's own trouble must not end what is measured
        log.warning("The metric %s could not be sent.", name, exc_info=True)
