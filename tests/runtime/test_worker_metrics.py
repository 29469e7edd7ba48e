"""What a worker says of itself in ``/metrics``."""

from __future__ import annotations

import re
import time

from airflow_arcadia.batch import Progress
from airflow_arcadia.lease import Lease
from airflow_arcadia.lease_store import LeaseStore
from airflow_arcadia.runtime.worker_metrics import BatchCounters, WorkerMetrics, lease_expires_at
from airflow_arcadia.worker import WorkerStatus
from tests.conftest import ROOT

LINE = re.compile(
    r"# (HELP|TYPE) \w+ .+|\w+(\{\w+=\"([^\"\\]|\\.)*\"(,\w+=\"([^\"\\]|\\.)*\")*\})? -?[0-9.e+]+"
)


def progress(ok: int, failed: int = 0) -> Progress:
    return Progress(
        ok + failed, 100, ok, failed, 1.0, 1.0, 1.0, prompt_tokens=2 * ok, completion_tokens=3 * ok
    )


def test_every_line_is_in_prometheus_text_format():
    hard = 'it said "no\\way"\nand ended'
    metrics = WorkerMetrics(
        WorkerStatus.HUNG, hard, "w", "tiny", 2, 1, 30.5, 1.5e9, BatchCounters(5, 1, 7, 9, 1.4e9)
    )
    text = metrics.text().decode()
    assert [line for line in text.splitlines() if not LINE.fullmatch(line)] == []
    assert 'arcadia_worker_status{status="hung"} 1\n' in text
    assert r'arcadia_worker_problem{cause="it said \"no\\way\"\nand ended"} 1' in text
    assert 'arcadia_worker_info{worker="w",model="tiny"} 1\n' in text
    assert 'arcadia_batch_rows_total{outcome="failed"} 1\n' in text
    assert "arcadia_lease_expires_timestamp_seconds 1500000000.0\n" in text


def test_what_is_not_known_has_no_sample():
    text = WorkerMetrics(WorkerStatus.STARTING).text().decode()
    samples = {line.split("{")[0].split(" ")[0] for line in text.splitlines() if not line.startswith("#")}
    assert "arcadia_worker_ready_seconds" not in samples
    assert "arcadia_batch_last_row_timestamp_seconds" not in samples


def test_a_batch_that_resumes_counts_from_where_it_was():
    counters = BatchCounters()
    seen = [progress(40), progress(50), progress(45), progress(60, 1)]  # 5 of a damaged segment come again
    for before, now in zip([None, *seen], seen, strict=False):
        counters.note(before.to_dict() if before else None, now, 1000.0)
    assert (counters.ok, counters.failed) == (25, 1)
    assert (counters.prompt_tokens, counters.completion_tokens) == (50, 75)


def test_only_progress_counts_as_the_last_row():
    counters = BatchCounters()
    counters.note(None, progress(0), 100.0)
    counters.note(progress(0).to_dict(), progress(0), 200.0)
    assert counters.last_row_at == 100.0
    counters.note(progress(0).to_dict(), progress(1), 300.0)
    assert counters.last_row_at == 300.0


def test_the_lease_is_read_from_its_file(store: LeaseStore, lease: Lease):
    found = lease_expires_at(store.file(lease.name))
    assert found is not None
    assert found > time.time()
    assert lease_expires_at(None) is None
    assert lease_expires_at(store.root / "none" / "lease.json") is None


def test_every_metric_is_documented():
    page = next((ROOT / "docs" / "reference").glob("metrics.md")).read_text(encoding="utf-8")
    documented = set(re.findall(r"^\| `(arcadia_[a-z_]+)`", page, re.MULTILINE))
    text = WorkerMetrics(WorkerStatus.READY).text().decode()
    assert documented == set(re.findall(r"^# TYPE (\w+) ", text, re.MULTILINE))
