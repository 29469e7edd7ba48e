"""What a batch costs on a real engine, beside vLLM's own ways: one model, one set of engine limits, one run.

``python -m benchmarks.engine [throughput] [prefix]``. Every way has its engine up before the first round; the
rounds alternate between the ways, and the medians count. Ways: ``LLM.chat`` offline, ``vllm run-batch``, a
plain asyncio client at 256 in flight, ours from a task, ours inside the worker.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.metadata
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson

from airflow_arcadia.batch import BatchSpec, Endpoint, run_batch
from airflow_arcadia.batch.batch_api import Completed, RemoteBatches, Running, judge
from airflow_arcadia.launchers.probe import observe
from airflow_arcadia.launchers.process import ProcessLauncher
from airflow_arcadia.launchers.teardown import teardown
from airflow_arcadia.lease import Identity
from airflow_arcadia.lease_store import LeaseStore
from airflow_arcadia.readiness import Failed, Ready, decide
from airflow_arcadia.worker import WorkerHandle, WorkerSpec
from benchmarks.results import record

ROOT = Path(__file__).resolve().parents[1]
WORKER_PYTHON = str(ROOT / ".venv-worker" / "bin" / "python")
MODEL = str(ROOT / "var" / "models" / "tiny-llama")
NAME = "bench"
ROWS, TOKENS, PLAIN_IN_FLIGHT = 1024, 32, 256
MAX_NUM_SEQS, MAX_NUM_BATCHED_TOKENS, MAX_MODEL_LEN = 256, 8192, 1024
KV_CACHE = 512 * 2**20
PARAMETERS = {"max_tokens": TOKENS, "temperature": 0.0, "ignore_eos": True}
PREFIX_GROUPS, PREFIX_ROWS, PREFIX_WORDS, PREFIX_TOKENS = 48, 16, 480, 4
SETTLE_S = 1.5
"""Between two ways: vLLM's processes spin for a second after their last row, on the next way's CPUs."""
POLL_S = 0.05
"""Between two looks at a batch inside the worker: half of it, on average, is measured with it."""
PREFIX_KV_CACHE = 16 * 2**20
"""Bytes that hold some of the prefixes at a time, not all: otherwise the order would not matter."""


def chat_rows(path: Path) -> None:
    """OpenAI batch rows, no two alike."""
    with path.open("wb") as file:
        for number in range(ROWS):
            text = f"Question {number}: how does shutil copy file {number * 7919} to its destination?"
            body = {"model": NAME, "messages": [{"role": "user", "content": text}], **PARAMETERS}
            row = {"custom_id": str(number), "method": "POST", "url": "/v1/chat/completions", "body": body}
            file.write(orjson.dumps(row) + b"\n")


def prefix_rows(path: Path) -> None:
    """Prompts that share long beginnings, shuffled."""
    shuffle = random.Random(0)
    words = ["import", "return", "self", "value", "path", "copy", "file", "name", "mode", "error"]
    prefixes = [" ".join(shuffle.choices(words, k=PREFIX_WORDS)) for _ in range(PREFIX_GROUPS)]
    prompts = [f"{prefix} question {number}" for prefix in prefixes for number in range(PREFIX_ROWS)]
    shuffle.shuffle(prompts)
    path.write_bytes(b"".join(orjson.dumps({"prompt": prompt}) + b"\n" for prompt in prompts))


@contextlib.contextmanager
def worker(folder: Path, kv_cache: int) -> Iterator[WorkerHandle]:
    """A worker as a DAG launches it, ready."""
    store = LeaseStore(folder / "state")
    lease = store.reserve(Identity("benchmarks", str(kv_cache), "worker"), time.time())
    spec = WorkerSpec(
        name=lease.name,
        model=MODEL,
        served_model_name=NAME,
        max_model_len=MAX_MODEL_LEN,
        max_num_seqs=MAX_NUM_SEQS,
        max_num_batched_tokens=MAX_NUM_BATCHED_TOKENS,
        extra_args=("--enforce-eager", "--kv-cache-memory-bytes", str(kv_cache)),
        allowed_uris=(str(folder),),
    )
    launcher = ProcessLauncher(store, WORKER_PYTHON)
    try:
        handle = launcher.launch(spec, lease, ray=None)
        while not isinstance(outcome := _look(launcher, handle), Ready):
            assert not isinstance(outcome, Failed), outcome.sentences
            time.sleep(0.5)
        yield handle
    finally:
        assert teardown(store, lease.name, {launcher.name: launcher}, grace_s=30) == []


def _look(launcher: ProcessLauncher, handle: WorkerHandle) -> Any:
    seen = asyncio.run(observe(launcher, handle))
    return decide(seen, started_at=0, now=1, startup_timeout_s=600)


@contextlib.contextmanager
def vllm_mode(mode: str, folder: Path) -> Iterator[Callable[[], float]]:
    """One of vLLM's own ways; each call runs the batch and returns its seconds."""
    flags = ["--max-num-seqs", MAX_NUM_SEQS, "--max-num-batched-tokens", MAX_NUM_BATCHED_TOKENS]
    flags += ["--max-model-len", MAX_MODEL_LEN, "--kv-cache-memory-bytes", KV_CACHE, "--enforce-eager"]
    command = [WORKER_PYTHON, "-m", "benchmarks.vllm_modes", mode, MODEL]
    command += [str(folder / "rows.jsonl"), str(folder / f"{mode}.jsonl"), *map(str, flags)]
    with (folder / f"{mode}.log").open("w") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT
        )
    assert process.stdin is not None
    assert process.stdout is not None

    def answer() -> Any:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("BENCH "):
                return json.loads(line.removeprefix("BENCH "))
        raise RuntimeError(f"{mode} ended; see {folder / mode}.log")

    def run() -> float:
        assert process.stdin is not None
        process.stdin.write("run\n")
        process.stdin.flush()
        return float(answer()["seconds"])

    try:
        assert answer() == "ready"
        yield run
    finally:
        process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        process.kill()


def plain_client(folder: Path, handle: WorkerHandle) -> float:
    """A client as one writes it in an afternoon; nothing is written."""
    import aiohttp

    lines = iter((folder / "rows.jsonl").read_bytes().splitlines())

    async def send() -> float:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector) as session:

            async def lane() -> None:
                for line in lines:
                    row = orjson.loads(line)
                    async with session.post(handle.url + row["url"], json=row["body"]) as answer:
                        assert answer.status == 200
                        await answer.read()

            began = time.monotonic()
            await asyncio.gather(*[lane() for _ in range(PLAIN_IN_FLIGHT)])
            return time.monotonic() - began

    return asyncio.run(send())


def spec_of(folder: Path, **options: Any) -> BatchSpec:
    return BatchSpec(str(folder / "rows.jsonl"), str(folder / "ours.jsonl"), NAME, overwrite=True, **options)


def task(folder: Path, handle: WorkerHandle, **options: Any) -> float:
    """Ours, from a process beside the worker: files read, segments committed, output merged."""
    began = time.monotonic()
    summary = run_batch(spec_of(folder, **options), [Endpoint(handle.url)])
    assert summary.failed == 0
    return time.monotonic() - began


def in_worker(folder: Path, handle: WorkerHandle, number: int) -> float:
    """Ours, by the worker itself."""

    async def run() -> float:
        batches = RemoteBatches(Endpoint(handle.url))
        began = time.monotonic()
        # Another output each time: the same batch would be found done.
        spec = BatchSpec(str(folder / "rows.jsonl"), str(folder / f"worker-{number}.jsonl"), NAME)
        name = await batches.submit(spec)
        while isinstance(state := judge(await batches.get(name)), Running):  # noqa: ASYNC110 - another process
            await asyncio.sleep(POLL_S)
        assert isinstance(state, Completed), state
        assert state.summary["failed"] == 0
        return time.monotonic() - began

    return asyncio.run(run())


def throughput(folder: Path, rounds: int) -> None:
    """Rows per second of every way, as ratios to offline."""
    chat_rows(folder / "rows.jsonl")
    with (
        vllm_mode("offline", folder) as offline,
        vllm_mode("run_batch", folder) as run_batch_,
        worker(folder, KV_CACHE) as handle,
    ):
        ways: dict[str, Callable[[int], float]] = {
            "offline": lambda _: offline(),
            "run_batch": lambda _: run_batch_(),
            "plain_client": lambda _: plain_client(folder, handle),
            "task": lambda _: task(folder, handle),
            "worker": lambda number: in_worker(folder, handle, number),
        }
        seconds = _alternate(ways, rounds)
    rates = {name: ROWS / statistics.median(runs) for name, runs in seconds.items()}
    ratios = {name: rate / rates["offline"] for name, rate in rates.items() if name != "offline"}
    record(
        rows_per_s={name: round(rate, 1) for name, rate in rates.items()},
        ratio_to_offline={name: round(ratio, 3) for name, ratio in ratios.items()},
        versions=versions(),
    )


def prefix(folder: Path, rounds: int) -> None:
    """Seconds in the input's order over seconds in order of prefixes."""
    prefix_rows(folder / "rows.jsonl")
    options = {"parameters": {"max_tokens": PREFIX_TOKENS, "temperature": 0.0, "ignore_eos": True}}
    with worker(folder, PREFIX_KV_CACHE) as handle:
        ways: dict[str, Callable[[int], float]] = {
            "input": lambda _: task(folder, handle, ordering="input", **options),
            "prefix": lambda _: task(folder, handle, ordering="prefix", **options),
        }
        seconds = _alternate(ways, rounds)
    record(
        prefix_speedup=round(statistics.median(seconds["input"]) / statistics.median(seconds["prefix"]), 2)
    )


def _alternate(ways: dict[str, Callable[[int], float]], rounds: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    # The first round warms up and does not count.
    for number in range(rounds + 1):
        # Each round begins with another way: coming first or last after a pause is no one's advantage.
        order = list(ways)
        for name in [*order[number % len(order) :], *order[: number % len(order)]]:
            time.sleep(SETTLE_S)
            took = ways[name](number)
            print(f"round {number}: {name:>12} {took:6.2f} s", flush=True)
            if number:
                seconds[name].append(took)
    return seconds


TELL_VERSIONS = "import vllm, torch, ray; print(vllm.__version__, torch.__version__, ray.__version__)"


def versions() -> dict[str, str]:
    """What was measured, and on what."""
    told = subprocess.run(
        [WORKER_PYTHON, "-c", TELL_VERSIONS], capture_output=True, text=True, check=True
    ).stdout.split()
    model = next(
        (
            x.split(":")[1].strip()
            for x in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in x
        ),
        platform.processor(),
    )

    names = ("vllm", "torch", "ray")
    return {
        **dict(zip(names, told[-3:], strict=True)),
        "airflow": importlib.metadata.version("apache-airflow"),
        "python": platform.python_version(),
        "cpu": f"{os.cpu_count()} x {model}",
    }


BENCHES = {bench.__name__: bench for bench in (throughput, prefix)}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine", description=__doc__)
    parser.add_argument("benches", nargs="*", choices=[*BENCHES, []], help="default: all")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    for name in options.benches or BENCHES:
        folder = Path(tempfile.mkdtemp(prefix="arcadia-bench-"))
        try:
            BENCHES[name](folder, options.rounds)
        except BaseException:
            print(f"logs are kept in {folder}", file=sys.stderr)
            raise
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
