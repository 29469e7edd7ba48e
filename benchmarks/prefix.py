"""What sending rows in order of their prefixes brings where the KV cache cannot hold all of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from benchmarks import ours
from benchmarks.results import Results
from benchmarks.rounds import alternate, ratios, summary
from benchmarks.worker import worker
from benchmarks.workloads import TINY, write_prefix_rows

GROUPS, ROWS, WORDS = 48, 16, 480
PARAMETERS = {"max_tokens": 4, "temperature": 0.0, "ignore_eos": True}
KV_CACHE = 16 * 2**20
"""Bytes that hold some of the prefixes at a time, not all: otherwise the order would not matter."""


def measure(folder: Path, results: Results, *, rounds: int, groups: int = GROUPS) -> None:
    """Record seconds in the input's order over seconds in order of prefixes."""
    rows = folder / "rows.jsonl"
    write_prefix_rows(rows, groups=groups, rows=ROWS, words=WORDS)
    with worker(folder, TINY.model, KV_CACHE) as handle:
        ways: dict[str, Callable[[int], float]] = {
            "input": lambda _: ours.in_task(rows, handle, ordering="input", parameters=PARAMETERS),
            "prefix": lambda _: ours.in_task(rows, handle, ordering="prefix", parameters=PARAMETERS),
        }
        seconds = alternate(ways, rounds)
    results.record(
        "prefix",
        rows=groups * ROWS,
        prefixes=groups,
        words=WORDS,
        rounds=rounds,
        seconds={name: summary(took, 2) for name, took in seconds.items()},
        speedup=summary(ratios(seconds["input"], seconds["prefix"]), 2),
    )
