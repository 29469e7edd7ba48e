"""The mock engine as a process, and what was measured against it as a process of its own."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from airflow_arcadia.batch import BatchSpec

MODEL = "mock"
IN_FLIGHT = 512


@contextlib.contextmanager
def mock_engine(delay_s: float = 0.0, answers: int | None = None) -> Iterator[str]:
    """URL of an engine that answers every row after ``delay_s`` seconds.

    :param answers: leave every row after that many unanswered.
    """
    command = [sys.executable, "-m", "benchmarks.mock_engine", "--delay", str(delay_s)]
    command += [] if answers is None else ["--answers", str(answers)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def spec_of(rows: Path, **options: object) -> BatchSpec:
    """A batch of these rows, with its output beside them."""
    fields = {"parameters": {"max_tokens": 32}, "max_in_flight": IN_FLIGHT, "overwrite": True, **options}
    return BatchSpec(str(rows), str(rows.with_name("out.jsonl")), MODEL, **fields)  # type: ignore[arg-type]


def in_own_process(measure: str, rows: Path, url: str) -> dict[str, float]:
    """What :mod:`benchmarks.mock_measures` finds, in a fresh process: its peak memory is its own."""
    command = [sys.executable, "-m", "benchmarks.mock_measures", measure, str(rows), url]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    found: dict[str, float] = json.loads(output)
    print(f"{measure:>14}: " + ", ".join(f"{key} {value:,.2f}" for key, value in found.items()), flush=True)
    return found
