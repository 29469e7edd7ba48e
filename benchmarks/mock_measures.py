"""Measurements against the mock engine: ``python -m benchmarks.mock_measures NAME ROWS URL`` prints JSON."""

from __future__ import annotations

import json
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from airflow_arcadia.batch import Endpoint, run_batch
from airflow_arcadia.exceptions import BatchError
from benchmarks import plain_client as plain
from benchmarks.mock import IN_FLIGHT, spec_of

STOP_AT = 0.99
"""Fraction of the rows that are answered when the batch to be resumed is stopped."""


def batch(rows: Path, url: str) -> dict[str, float]:
    """A whole batch: rows per second of sending, seconds of all of it, peak memory in MiB."""
    began = time.monotonic()
    summary = run_batch(spec_of(rows), [Endpoint(url)])
    assert summary.failed == 0
    return {
        "rows": float(summary.rows),
        "rows_per_s": summary.rows / summary.seconds,
        "seconds": time.monotonic() - began,
        "peak_mib": peak_mib(),
    }


def plain_client(rows: Path, url: str) -> dict[str, float]:
    """The same rows by aiohttp, nothing written."""
    count = rows.read_bytes().count(b"\n")
    return {"rows_per_s": count / plain.send_all(rows, url, IN_FLIGHT)}


def interrupted(rows: Path, url: str) -> dict[str, float]:
    """The batch on an engine that answers no more than 99 % of it, stopped then."""
    wanted = int(STOP_AT * rows.read_bytes().count(b"\n"))
    done = 0

    def note(progress: Any) -> None:
        nonlocal done
        done = progress.done

    try:
        run_batch(
            spec_of(rows),
            [Endpoint(url)],
            on_progress=note,
            progress_interval_s=0.1,
            should_stop=lambda: done >= wanted,
        )
    except BatchError:
        return {"done": float(done)}
    raise AssertionError("the batch was not stopped")


def resumed(rows: Path, url: str) -> dict[str, float]:
    """The rest of it: seconds to the first row, and to the finished files."""
    began = time.monotonic()
    summary = run_batch(spec_of(rows), [Endpoint(url)])
    ended = time.monotonic()
    with urllib.request.urlopen(f"{url}/first_post") as answer:  # noqa: S310 - the mock engine's own URL
        first = float(answer.read())
    return {
        "first_row_s": first - began,
        "seconds": ended - began,
        "resumed_rows": float(summary.resumed_rows),
        "peak_mib": peak_mib(),
    }


def peak_mib() -> float:
    """The most memory this process has had, in MiB."""
    # Not getrusage: its figure counts what the process was before it became another program.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


MEASURES: dict[str, Callable[[Path, str], dict[str, float]]] = {
    measure.__name__: measure for measure in (batch, plain_client, interrupted, resumed)
}

if __name__ == "__main__":
    name, rows, url = sys.argv[1:]
    print(json.dumps(MEASURES[name](Path(rows), url)))
