"""The README's figures are those of ``benchmarks/results.json``."""

from __future__ import annotations

import pytest

from benchmarks.report import BEGIN, END, README, render, with_figures
from benchmarks.results import Results
from benchmarks.throughput import WAYS

MEASURED = {
    "date": "2026-11-25",
    "machine": {"cpu": "2 x CPU", "memory_gib": 24, "load_before": 0.1},
    "versions": {"vllm": "0.32.0", "torch": "2.13.0", "ray": "2.60.0", "python": "3.11.7"},
}
THROUGHPUT = {
    **MEASURED,
    "model": "a model",
    "rows": 1024,
    "tokens": 32,
    "rounds": 4,
    "rows_per_s": dict.fromkeys(WAYS, 100.0),
    "of_offline": {way: {"median": 0.987, "min": 0.95, "max": 1.01} for way in WAYS},
}


def test_the_readme_has_the_figures_that_were_measured_last():
    text = README.read_text(encoding="utf-8")
    assert with_figures(text, Results().read()) == text, "run python -m benchmarks.report"


def test_every_way_is_a_row_and_every_model_a_column():
    told = render({"throughput_tiny": THROUGHPUT, "throughput_smollm2": {**THROUGHPUT, "model": "another"}})
    rows = [line for line in told.splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + len(WAYS)
    assert all(row.count("|") == 4 for row in rows)
    assert "100.0 (0.99, 0.95 to 1.01)" in told


def test_a_way_that_one_model_was_not_measured_with_is_said_to_be_missing():
    less = {**THROUGHPUT, "rows_per_s": {"offline": 100.0}}
    told = render({"throughput_tiny": THROUGHPUT, "throughput_smollm2": less})
    assert told.count("not run") == len(WAYS) - 1


def test_figures_say_where_and_when_they_were_measured():
    told = render({"resume": {**MEASURED, "rows": 1000, "first_row_s": 0.123}})
    assert "after 0.12 s" in told
    assert "`resume`: vLLM 0.32.0, PyTorch 2.13.0, Ray 2.60.0, Python 3.11.7, 2 x CPU" in told
    assert "2026-11-25" in told


def test_a_start_is_told_beside_the_bare_servers_in_seconds_and_in_cpu_time():
    ways = {"bare": 1.0, "process": 1.02, "pod": 1.08}
    ratio = {way: {"median": of_bare, "min": of_bare, "max": of_bare} for way, of_bare in ways.items()}
    seconds = {way: {"median": 20 * of_bare} for way, of_bare in ways.items()}
    told = render({"start": {**MEASURED, "seconds": seconds, "of_bare": ratio, "cpu_of_bare": ratio}})
    assert "a process is ready after 20.4 s (1.02 of that, 1.02 of its CPU time)" in told


def test_a_readme_without_the_marks_is_an_error():
    with pytest.raises(ValueError, match="has no lines"):
        with_figures("# Title", {})
    assert with_figures(f"a {BEGIN} old {END} b", {}) == f"a {BEGIN}\n\n{END} b"
