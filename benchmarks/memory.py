"""Peak memory of a batch: by its number of rows, and by the size of the rows that are in flight."""

from __future__ import annotations

from pathlib import Path

import orjson

from benchmarks.mock import in_own_process, mock_engine
from benchmarks.results import Results
from benchmarks.workloads import write_chat_rows

SMALL, LARGE = 10_000, 1_000_000
KIB, MIB = 2**10, 2**20
DELAY_S = 0.2
"""Of the mock engine: rows stay in flight for a while, as they do on a real one."""


def measure_growth(folder: Path, results: Results, *, small: int = SMALL, large: int = LARGE) -> None:
    """Record peak memory with few and with many small rows."""
    rows = folder / "rows.jsonl"
    peaks = {}
    for name, count in (("small", small), ("large", large)):
        write_chat_rows(rows, count)
        with mock_engine() as url:
            peaks[name] = in_own_process("batch", rows, url)["peak_mib"]
    results.record(
        "memory_growth",
        rows={"small": small, "large": large},
        peak_mib={name: round(peak, 1) for name, peak in peaks.items()},
        growth_mib=round(peaks["large"] - peaks["small"], 1),
    )


def measure_in_flight(folder: Path, results: Results, *, total_bytes: int = 1024 * MIB) -> None:
    """Record peak memory with rows of 256 KiB and of 4 MiB, beside that of as many tiny rows.

    :param total_bytes: size of each input.
    """
    rows = folder / "rows.jsonl"
    figures: dict[str, dict[str, float]] = {}
    for name, size in (("256 KiB", 256 * KIB), ("4 MiB", 4 * MIB)):
        count = total_bytes // size
        peaks = []
        for each in (0, size):
            _write_large_rows(rows, count, each)
            with mock_engine(DELAY_S) as url:
                peaks.append(in_own_process("batch", rows, url)["peak_mib"])
        figures[name] = {
            "rows": count,
            "peak_mib": round(peaks[1], 1),
            "above_tiny_rows_mib": round(peaks[1] - peaks[0], 1),
        }
    results.record("memory_in_flight", input_mib=total_bytes // MIB, by_row_size=figures)


def _write_large_rows(path: Path, count: int, size: int) -> None:
    """Rows whose prompts have about ``size`` bytes, no two alike."""
    filling = "copy this file " * (size // 15)
    with path.open("wb") as file:
        for number in range(count):
            body = {"messages": [{"role": "user", "content": f"Question {number}: {filling}"}]}
            row = {"custom_id": str(number), "method": "POST", "url": "/v1/chat/completions", "body": body}
            file.write(orjson.dumps(row) + b"\n")
