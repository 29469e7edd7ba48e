"""Launch to ready: a worker as a process and as a pod, beside a bare vLLM server with the same arguments.

Ready means the same for all three: the server has generated a token. The worker is waited for as the
``model_ready`` task does; the pod runs on the tests' loopback cluster. Beside the seconds the CPU time until
then is compared, which other programs on the machine hardly change.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from airflow_arcadia.ports import free_port
from airflow_arcadia.processes import end, mark
from benchmarks.results import ROOT, WORKER_PYTHON, Results
from benchmarks.rounds import alternate, ratios, summary
from benchmarks.worker import MAX_MODEL_LEN, STARTUP_TIMEOUT_S, engine_flags, worker
from benchmarks.workloads import SERVED_NAME, TINY
from tests.kubernetes.workers import Run, connect, where
from tests.loopback_cluster.cluster import (
    PYTHON_IMAGE,
    WORKER_IMAGE,
    Cluster,
    Loopback,
    loopback_images,
    write_kubeconfig,
)

BASE = "bare"
WAYS = (BASE, "process", "pod")
BARE_POLL_S = 0.1
SETTLE_S = 3.0


def measure(folder: Path, results: Results, *, rounds: int, ways: tuple[str, ...] = WAYS) -> None:
    """Record the seconds from launch to ready, and the ratio to the bare server in the same round."""
    cpu: dict[str, list[float]] = {}
    with contextlib.ExitStack() as stack:
        starts: dict[str, Callable[[int], Start]] = {
            BASE: lambda number: _bare(folder, number),
            "process": lambda number: _process(folder / str(number)),
        }
        if "pod" in ways:
            cluster = stack.enter_context(_cluster(folder))
            starts["pod"] = lambda number: _pod(cluster, number)
        runs = {name: _run(starts[name], cpu.setdefault(name, [])) for name in WAYS if name in {BASE, *ways}}
        # The first start reads everything from disk: it does not count.
        seconds = alternate(runs, rounds, settle_s=SETTLE_S)
    cpu = {name: used[1:] for name, used in cpu.items()}
    results.record(
        "start",
        model=TINY.title,
        rounds=rounds,
        seconds={name: summary(took, 2) for name, took in seconds.items()},
        of_bare={name: summary(ratios(took, seconds[BASE])) for name, took in seconds.items()},
        cpu_seconds={name: summary(used, 2) for name, used in cpu.items()},
        cpu_of_bare={name: summary(ratios(used, cpu[BASE])) for name, used in cpu.items()},
    )


class Start(NamedTuple):
    """What a start took until the server had generated: seconds, and CPU seconds of all its processes."""

    seconds: float
    cpu_seconds: float

    @classmethod
    def since(cls, began: float, lease: str) -> Start:
        """The start that began then, by a monotonic clock, and whose processes carry the lease's name."""
        return cls(time.monotonic() - began, _cpu_of(lease))


def _run(start: Callable[[int], Start], cpu: list[float]) -> Callable[[int], float]:
    """The start as a way that is measured by its seconds; its CPU seconds are added to ``cpu``."""

    def run(number: int) -> float:
        took = start(number)
        print(f"         {took.cpu_seconds:.2f} s of CPU", flush=True)
        cpu.append(took.cpu_seconds)
        return took.seconds

    return run


def _cpu_of(lease: str) -> float:
    """CPU seconds of the processes whose environment names the lease, and of their ended children."""
    used = 0.0
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if lease in process.environ().values():
                times = process.cpu_times()
                used += times.user + times.system + times.children_user + times.children_system
    return used


def _bare(folder: Path, number: int) -> Start:
    """``python -m vllm.entrypoints.openai.api_server``."""
    port = free_port("127.0.0.1")
    lease = f"bench-{os.getpid()}-bare-{number}"
    command = [WORKER_PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model", str(TINY.model)]
    command += ["--served-model-name", SERVED_NAME, "--host", "127.0.0.1", "--port", str(port)]
    command += ["--disable-uvicorn-access-log", *engine_flags()]
    began = time.monotonic()
    with (folder / "bare.log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, cwd=ROOT, env={**os.environ, **mark(lease, "bare")}
        )
    try:
        while not _generates(f"http://127.0.0.1:{port}"):
            if process.poll() is not None or time.monotonic() - began > STARTUP_TIMEOUT_S:
                raise RuntimeError(f"the bare server is not ready; its log is {folder / 'bare.log'}")
            time.sleep(BARE_POLL_S)
        return Start.since(began, lease)
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        end(None, lease, grace_s=5)


def _generates(url: str) -> bool:
    # Not one token: on a CPU with AMX a bare vLLM 0.32 dies of a first prompt that short.
    body = json.dumps({"model": SERVED_NAME, "prompt": "one " * 64, "max_tokens": 1}).encode()
    request = urllib.request.Request(  # noqa: S310 - a server on loopback
        f"{url}/v1/completions", body, {"Content-Type": "application/json"}
    )
    with contextlib.suppress(urllib.error.URLError, OSError), urllib.request.urlopen(request) as answer:  # noqa: S310
        return bool(answer.status == 200)
    return False


def _process(folder: Path) -> Start:
    began = time.monotonic()
    with worker(folder, TINY.model) as handle:
        return Start.since(began, handle.lease)


def _pod(cluster: Cluster, number: int) -> Start:
    """Through the operators, as a DAG has it."""
    volume = {"hostPath": {"path": str(TINY.model.parent)}}
    pod = {**where(), "image": cluster.worker_image, "model_volume": volume, "shm_size": "1Gi"}
    run = Run(cluster, f"bench__{os.getpid()}_{number}", pod)
    run.reserve()
    try:
        began = time.monotonic()
        run.launch(
            model=str(TINY.model),
            served_model_name=SERVED_NAME,
            engine={"max_model_len": MAX_MODEL_LEN, "extra_args": engine_flags()[-3:]},
        )
        failed = run.wait(STARTUP_TIMEOUT_S)
        took = Start.since(began, run.lease)
    finally:
        run.teardown()
    if failed:
        raise RuntimeError(failed)
    return took


@contextlib.contextmanager
def _cluster(folder: Path) -> Iterator[Cluster]:
    """The loopback cluster, with the connections to it in the environment."""
    with pytest.MonkeyPatch.context() as environment:
        loopback = Loopback(folder / "cluster", loopback_images(WORKER_PYTHON))
        loopback.start()
        try:
            kubeconfig = write_kubeconfig(folder / "kubeconfig", loopback.url)
            cluster = Cluster(kubeconfig, "tests", WORKER_IMAGE, PYTHON_IMAGE, loopback)
            environment.setenv("AIRFLOW_CONN_KUBERNETES_DEFAULT", json.dumps(cluster.airflow_connection))
            connect(environment, cluster)
            yield cluster
        finally:
            loopback.stop()
