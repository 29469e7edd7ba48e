"""What the batch engine itself costs, on an engine that answers at once.

``python -m benchmarks.client [ceiling] [memory] [resume]`` measures, each in fresh processes: rows per second
of one process, beside a plain aiohttp client's; peak memory at 10 k and 1 M rows; and the time a 1 M-row job
that is 99 % done takes from its start to its first row sent.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson

from airflow_arcadia.batch import BatchSpec, Endpoint, run_batch
from airflow_arcadia.batch.transport.http_client import HttpClient
from airflow_arcadia.exceptions import BatchError
from benchmarks.results import record

IN_FLIGHT = 512
CEILING_ROWS = 40_000
SMALL, LARGE = 10_000, 1_000_000


def write_rows(path: Path, count: int) -> None:
    """Chat rows of about 120 bytes, no two alike."""
    with path.open("wb") as file:
        for row in range(count):
            content = f"Question {row}: what is the capital of France, and why is it not Lyon?"
            line = {"custom_id": f"row-{row}", "messages": [{"role": "user", "content": content}]}
            file.write(orjson.dumps(line) + b"\n")


@contextmanager
def mock_engine() -> Iterator[str]:
    """URL of an engine that answers at once."""
    command = [sys.executable, "-m", "benchmarks.mock_engine"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def spec_in(folder: Path) -> BatchSpec:
    return BatchSpec(
        str(folder / "in.jsonl"),
        str(folder / "out.jsonl"),
        "mock",
        {"max_tokens": 32},
        max_in_flight=IN_FLIGHT,
        overwrite=True,
    )


def batch(folder: Path, url: str) -> dict[str, float]:
    """A whole batch: rows per second of sending, seconds of all of it, peak memory in MiB."""
    began = time.monotonic()
    summary = run_batch(spec_in(folder), [Endpoint(url)])
    assert summary.failed == 0
    return {
        "rows_per_s": summary.rows / summary.seconds,
        "seconds": time.monotonic() - began,
        "rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def plain_client(folder: Path, url: str) -> dict[str, float]:
    """The same rows by aiohttp, nothing written."""
    import aiohttp

    async def send() -> float:
        lines = iter((folder / "in.jsonl").read_bytes().splitlines())
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector) as session:

            async def lane() -> None:
                for line in lines:
                    body = orjson.dumps({**orjson.loads(line), "model": "mock", "max_tokens": 32})
                    async with session.post(f"{url}/v1/chat/completions", data=body) as answer:
                        orjson.loads(await answer.read())

            began = time.monotonic()
            await asyncio.gather(*[lane() for _ in range(IN_FLIGHT)])
            return CEILING_ROWS / (time.monotonic() - began)

    return {"rows_per_s": asyncio.run(send())}


def interrupted(folder: Path, url: str) -> dict[str, float]:
    """The large batch up to 99 %."""
    done = 0

    def note(progress: Any) -> None:
        nonlocal done
        done = progress.done

    try:
        run_batch(
            spec_in(folder),
            [Endpoint(url)],
            on_progress=note,
            progress_interval_s=0.1,
            should_stop=lambda: done >= 0.985 * LARGE,
        )
    except BatchError:
        return {"done": float(done)}
    raise AssertionError("it was not stopped")


def resumed(folder: Path, url: str) -> dict[str, float]:
    """The rest of it: seconds to the first row, and to the finished files."""
    first: list[float] = []
    post = HttpClient.post

    async def noting(self: HttpClient, path: str, body: bytes) -> Any:
        if not first:
            first.append(time.monotonic())
        return await post(self, path, body)

    HttpClient.post = noting  # type: ignore[method-assign]
    began = time.monotonic()
    summary = run_batch(spec_in(folder), [Endpoint(url)])
    return {
        "first_row": first[0] - began,
        "all": time.monotonic() - began,
        "resumed_rows": float(summary.resumed_rows),
        "rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


MEASURES = {measure.__name__: measure for measure in (batch, plain_client, interrupted, resumed)}


def measured(name: str, folder: Path, url: str) -> dict[str, float]:
    """A measure in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.client", "--measure", name, str(folder), url]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    print(f"{name:>14}: " + ", ".join(f"{key} {value:,.2f}" for key, value in found.items()), flush=True)
    return found


def ceiling(folder: Path, runs: int) -> None:
    write_rows(folder / "in.jsonl", CEILING_ROWS)
    ours, plain = [], []
    for _ in range(runs):
        with mock_engine() as url:
            ours.append(measured("batch", folder, url)["rows_per_s"])
            plain.append(measured("plain_client", folder, url)["rows_per_s"])
    record(
        client_ceiling_rows_per_s=round(statistics.median(ours)),
        plain_client_ceiling_rows_per_s=round(statistics.median(plain)),
    )


def memory(folder: Path, runs: int) -> None:
    peaks = {}
    for name, rows in (("10k", SMALL), ("1m", LARGE)):
        write_rows(folder / "in.jsonl", rows)
        with mock_engine() as url:
            peaks[name] = round(measured("batch", folder, url)["rss_mib"], 1)
    record(peak_rss_mib=peaks)


def resume(folder: Path, runs: int) -> None:
    write_rows(folder / "in.jsonl", LARGE)
    with mock_engine() as url:
        measured("interrupted", folder, url)
        record(resume_seconds=round(measured("resumed", folder, url)["first_row"], 3))


BENCHES = {bench.__name__: bench for bench in (ceiling, memory, resume)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("benches", nargs="*", choices=[*BENCHES, []], help="default: all")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--measure", nargs=3, metavar=("NAME", "FOLDER", "URL"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        name, folder, url = options.measure
        print(json.dumps(MEASURES[name](Path(folder), url)))
        return
    for name in options.benches or BENCHES:
        folder = Path(tempfile.mkdtemp(prefix="arcadia-bench-"))
        try:
            BENCHES[name](folder, options.runs)
        finally:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
