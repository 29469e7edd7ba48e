"""Other ways to run a batch, each a process that loads its engine once and runs a round whenever asked."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from airflow_arcadia.processes import end, mark
from benchmarks.peer_protocol import PREFIX
from benchmarks.results import ROOT, WORKER_PYTHON

RAY_DATA_PACKAGES = ROOT / "var" / "bench" / "ray-data"
"""What Ray Data needs and the worker's environment does not have; made by ``make bench``."""

_EXIT_S = 30.0


@contextlib.contextmanager
def vllm_mode(mode: str, model: Path, rows: Path, flags: list[str]) -> Iterator[Callable[[int], float]]:
    """One of vLLM's own ways (``offline``, ``run_batch``); each call runs the rows and returns seconds."""
    words = ["benchmarks.vllm_modes", mode, str(model), str(rows), str(rows.with_name(f"{mode}.jsonl"))]
    with _peer(mode, [*words, *flags], rows.with_name(f"{mode}.log")) as run:
        yield run


@contextlib.contextmanager
def ray_data_llm(
    model: Path, rows: Path, flags: list[str], *, batch_size: int
) -> Iterator[Callable[[int], float]]:
    """Ray Data LLM on a Ray node of its own; each call runs the rows and returns its seconds."""
    words = ["benchmarks.ray_data_llm", str(model), str(rows), str(batch_size), *flags]
    with _peer("ray_data_llm", words, rows.with_name("ray_data_llm.log"), path=RAY_DATA_PACKAGES) as run:
        yield run


@contextlib.contextmanager
def _peer(
    name: str, words: list[str], log: Path, *, path: Path | None = None
) -> Iterator[Callable[[int], float]]:
    """Run ``python -m WORDS`` with the worker's Python; its log goes to ``log``.

    :param path: folder with more packages.
    """
    lease = f"bench-{os.getpid()}-{name}"
    packages = [str(ROOT), *([str(path)] if path else [])]
    env = {**os.environ, **mark(lease, "peer"), "PYTHONPATH": os.pathsep.join(packages)}
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            [WORKER_PYTHON, "-m", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
            cwd=ROOT,
            env=env,
        )
    assert process.stdin is not None
    assert process.stdout is not None

    def answer() -> Any:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(PREFIX):
                return json.loads(line.removeprefix(PREFIX))
        raise RuntimeError(f"{name} ended; its log is {log}")

    def run(_: int) -> float:
        assert process.stdin is not None
        process.stdin.write("run\n")
        process.stdin.flush()
        return float(answer()["seconds"])

    try:
        assert answer() == "ready"
        yield run
    finally:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_EXIT_S)
        process.kill()
        process.wait()
        # What it started and left: engines and Ray's processes.
        end(None, lease, grace_s=5)
