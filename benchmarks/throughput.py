"""Rows per second of a batch on a real engine, beside vLLM's own ways and Ray Data LLM.

All ways have the same engine limits and vLLM's own scheduling, and their engines are loaded before the
first round. Ways: ``LLM.chat`` offline, ``vllm run-batch``, Ray Data LLM, a plain asyncio client on our
worker, our batch in a task, and our batch inside the worker.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import ours, peers, plain_client
from benchmarks.results import Results
from benchmarks.rounds import alternate, ratios, summary
from benchmarks.worker import MAX_NUM_SEQS, engine_flags, worker
from benchmarks.workloads import TOKENS, Workload, write_chat_rows

WAYS = ("offline", "run_batch", "ray_data_llm", "plain_client", "task", "worker")
BASE = "offline"
PLAIN_IN_FLIGHT = MAX_NUM_SEQS


def measure(
    workload: Workload,
    folder: Path,
    results: Results,
    *,
    rounds: int,
    ways: Sequence[str] = WAYS,
    row_count: int | None = None,
) -> None:
    """Record rows per second of these ways, and how they compare with offline in the same round.

    :param ways: some of :data:`WAYS`; the base, ``offline``, is always measured.
    :param row_count: rows of a round, where it is not the workload's own; a multiple of its Ray batch.
    """
    row_count = row_count or workload.rows
    rows = folder / "rows.jsonl"
    write_chat_rows(rows, row_count)
    with contextlib.ExitStack() as stack:
        runs = _start(stack, workload, rows, [way for way in WAYS if way in {BASE, *ways}])
        seconds = alternate(runs, rounds)
    results.record(
        f"throughput_{workload.name}",
        model=workload.title,
        rows=row_count,
        tokens=TOKENS,
        rounds=rounds,
        rows_per_s={name: round(row_count / statistics.median(took), 1) for name, took in seconds.items()},
        of_offline={name: summary(ratios(seconds[BASE], took)) for name, took in seconds.items()},
    )


def _start(
    stack: contextlib.ExitStack, workload: Workload, rows: Path, ways: Sequence[str]
) -> dict[str, Callable[[int], float]]:
    """Load the engines of these ways; what is started ends with ``stack``."""
    model, flags = workload.model, engine_flags()
    runs: dict[str, Callable[[int], float]] = {}
    for mode in ("offline", "run_batch"):
        if mode in ways:
            print(f"loading the engine of {mode}", flush=True)
            runs[mode] = stack.enter_context(peers.vllm_mode(mode, model, rows, flags))
    if "ray_data_llm" in ways:
        print("loading the engine of ray_data_llm", flush=True)
        runs["ray_data_llm"] = stack.enter_context(
            peers.ray_data_llm(model, rows, flags, batch_size=workload.ray_batch)
        )
    on_worker = {way for way in ways if way in {"plain_client", "task", "worker"}}
    if on_worker:
        print("loading the engine of our worker", flush=True)
        handle = stack.enter_context(worker(rows.parent, model))
        of_worker: dict[str, Callable[[int], float]] = {
            "plain_client": lambda _: plain_client.send_all(rows, handle.url, PLAIN_IN_FLIGHT),
            "task": lambda _: ours.in_task(rows, handle),
            "worker": lambda number: ours.in_worker(rows, handle, number),
        }
        runs |= {name: run for name, run in of_worker.items() if name in on_worker}
    return {way: runs[way] for way in ways}
