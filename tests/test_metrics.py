"""The metrics of batches and workers arrive at a StatsD server, through Airflow's own client."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest

from airflow_arcadia import metrics
from airflow_arcadia.batch import BatchSummary, Progress
from airflow_arcadia.launchers.reaper import Reaped, Report
from tests.conftest import ROOT
from tests.statsd_listener import Listener, statsd

__all__ = ["statsd"]
TAGS = {"dag_id": "nightly", "task_id": "answer"}


def progress(ok: int, failed: int = 0) -> Progress:
    return Progress(
        ok + failed, 100, ok, failed, 5.0, 50.0, 1.0, prompt_tokens=10 * ok, completion_tokens=20 * ok
    )


def test_an_attempt_counts_the_rows_it_answered_itself(statsd: Listener):
    batch = metrics.BatchMetrics(TAGS)
    for seen in (progress(40), progress(55, 1), progress(98, 2)):  # 40 rows were an earlier attempt's
        batch.progress(seen)
    batch.finished(BatchSummary(100, 98, 2, 12.5, 50.0, "out"))
    statsd.read()
    assert statsd.sum("arcadia.batch.rows", outcome="ok", **TAGS) == 58
    assert statsd.sum("arcadia.batch.rows", outcome="failed", **TAGS) == 2
    assert statsd.sum("arcadia.batch.failed", **TAGS) == 2
    assert statsd.sum("arcadia.batch.tokens", kind="prompt") == 580
    assert statsd.sum("arcadia.batch.tokens", kind="completion") == 1160
    assert statsd.sum("arcadia.batch.ended", outcome="success") == 1
    assert statsd.last("arcadia.batch.seconds") == 12_500  # StatsD's timers are in milliseconds
    assert statsd.last("arcadia.batch.rows_done") == 100
    assert statsd.last("arcadia.batch.rows_total") == 100
    assert statsd.last("arcadia.batch.tokens_per_s") == 50


def test_a_damaged_segments_rows_are_never_taken_back(statsd: Listener):
    batch = metrics.BatchMetrics(TAGS)
    for seen in (progress(0), progress(50), progress(40), progress(60)):
        batch.progress(seen)
    assert statsd.read().sum("arcadia.batch.rows") == 70


def test_a_batch_that_was_done_before_counts_nothing(statsd: Listener):
    metrics.BatchMetrics(TAGS).finished(BatchSummary(100, 98, 2, 12.5, 50.0, "out"))
    assert statsd.read().received == []


def test_a_batch_of_the_worker_counts_as_a_whole(statsd: Listener):
    summary = BatchSummary(100, 98, 2, 3.0, 50.0, "out", prompt_tokens=7, completion_tokens=9)
    metrics.BatchMetrics(TAGS).finished_in_worker(summary)
    assert statsd.read().sum("arcadia.batch.rows") == 100
    assert statsd.sum("arcadia.batch.tokens") == 16


def test_what_a_reaper_found_is_told_by_connection(statsd: Listener):
    ended, stuck = Reaped("a", "lapsed", 2), Reaped("b", "lapsed", 4, left=("Pod x",))
    metrics.swept("arcadia_default", Report([ended, stuck], ["c"], lapsed=["b"], gpus={"c": 8}))
    statsd.read()
    assert statsd.last("arcadia.gpus_held", conn_id="arcadia_default") == 8
    assert statsd.last("arcadia.leases_held") == 1
    assert statsd.last("arcadia.leases_lapsed") == 1
    assert statsd.sum("arcadia.leases_reaped") == 1


def test_a_worker_is_measured_from_the_begin_of_the_wait(statsd: Listener):
    metrics.worker_ready(61.5, "pod")
    metrics.worker_failed("process")
    statsd.read()
    assert statsd.last("arcadia.worker.ready_seconds", launcher="pod") == 61_500
    assert statsd.sum("arcadia.worker.failed", launcher="process") == 1


def test_a_backend_that_fails_does_not_end_what_is_measured(monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object, **__: object) -> None:
        raise OSError("no route")

    monkeypatch.setattr(metrics, "Stats", SimpleNamespace(gauge=fail, incr=fail))
    metrics.BatchMetrics(TAGS).progress(progress(1))


def test_every_metric_is_documented_with_its_tags():
    page = next((ROOT / "docs" / "reference").glob("metrics.md")).read_text(encoding="utf-8")
    documented = set(re.findall(r"^\| `(arcadia\.[a-z_.]+)`", page, re.MULTILINE))
    assert documented == set(metrics.NAMES)
