"""What the batch engine itself costs, on an engine that answers at once: rows per second, and resuming."""

from __future__ import annotations

from pathlib import Path

from benchmarks.mock import in_own_process, mock_engine
from benchmarks.mock_measures import STOP_AT
from benchmarks.results import Results
from benchmarks.rounds import summary
from benchmarks.workloads import write_chat_rows

ROWS = 40_000
RESUMED_ROWS = 1_000_000


def measure_ceiling(folder: Path, results: Results, *, rounds: int, row_count: int = ROWS) -> None:
    """Record rows per second of one process, and of a plain aiohttp client."""
    rows = folder / "rows.jsonl"
    write_chat_rows(rows, row_count)
    rates: dict[str, list[float]] = {"batch": [], "plain_client": []}
    for _ in range(rounds):
        with mock_engine() as url:
            for name, found in rates.items():
                found.append(in_own_process(name, rows, url)["rows_per_s"])
    figures = {name: summary(found, 0) for name, found in rates.items()}
    results.record("client", rows=row_count, rounds=rounds, rows_per_s=figures)


def measure_resume(folder: Path, results: Results, *, row_count: int = RESUMED_ROWS) -> None:
    """Record the seconds from the start of a job that is 99 % done to its first row sent."""
    rows = folder / "rows.jsonl"
    write_chat_rows(rows, row_count)
    with mock_engine(answers=int(STOP_AT * row_count)) as url:
        in_own_process("interrupted", rows, url)
    with mock_engine() as url:
        found = in_own_process("resumed", rows, url)
    results.record("resume", rows=row_count, **{key: round(value, 3) for key, value in found.items()})
