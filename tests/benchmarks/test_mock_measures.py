"""What is measured against the mock engine, on a few rows: that it runs, not how fast."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import client, memory
from benchmarks.__main__ import BENCHES, chosen
from benchmarks.results import Results


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Results:
    monkeypatch.setattr("benchmarks.results.versions", dict)
    return Results(tmp_path / "results.json")


def test_a_job_that_is_99_percent_done_is_resumed(tmp_path: Path, results: Results):
    client.measure_resume(tmp_path, results, row_count=2000)
    found = results.read()["resume"]
    assert found["resumed_rows"] == 1980
    assert 0 < found["first_row_s"] <= found["seconds"]


def test_memory_is_measured_with_small_and_with_large_rows(tmp_path: Path, results: Results):
    memory.measure_growth(tmp_path, results, small=100, large=200)
    memory.measure_in_flight(tmp_path, results, total_bytes=8 * memory.MIB)
    sections = results.read()
    assert set(sections) == {"memory_growth", "memory_in_flight"}
    assert sections["memory_in_flight"]["by_row_size"]["4 MiB"]["rows"] == 2
    assert sections["memory_in_flight"]["by_row_size"]["4 MiB"]["peak_mib"] > 10


def test_a_benchmark_can_be_run_alone():
    assert chosen([]) == list(BENCHES)
    assert chosen(["throughput"]) == ["smollm2", "tiny"]
    assert chosen(["prefix", "tiny"]) == ["tiny", "prefix"]
