"""A job on a real tensor-parallel engine, killed again and again: the output is that of an undisturbed run.

Killed are the runner, the worker while the runner sends and while it runs the batch itself, and the engine's
ranks; a segment's last bytes are torn once and the disk is full once.
"""

from __future__ import annotations

import asyncio
import json
import random
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from airflow_arcadia.batch import BatchSpec, Endpoint, run_batch
from airflow_arcadia.batch.output.segments import FAILED, read_footer
from airflow_arcadia.lease_store import LeaseStore
from airflow_arcadia.ports import free_port
from airflow_arcadia.ray_cluster.local import LocalRayBackend
from airflow_arcadia.ray_cluster.provision import provision
from airflow_arcadia.readiness import Ready
from tests.conftest import ROOT, wait_for
from tests.engine.serving import Served, relaunch, served
from tests.ray_cluster.real_ray import real_ray

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1500)]
OPTIONS = {"segment_rows": 16, "segment_seconds": 0.1, "max_in_flight": 32, "keep_segments": True}
PARAMETERS = {"max_tokens": 12, "temperature": 0}


@dataclass(frozen=True)
class Plan:
    """How often which process is killed.

    :param rounds: times that the worker, a rank and the worker that runs the batch by itself are killed.
    """

    rows: int
    runner_kills: int
    rounds: int


SHORT = Plan(rows=1200, runner_kills=8, rounds=1)
LONG = Plan(rows=2400, runner_kills=44, rounds=2)


class Job:
    """The batch that is disturbed.

    :param output: where its answers go in the end.
    """

    def __init__(self, worker: Served, source: Path, output: Path) -> None:
        self.worker, self.source, self.output = worker, source, output
        self.parts = output.with_name(f".{output.name}.parts")
        self.kills = 0

    @property
    def spec(self) -> BatchSpec:
        """As every attempt has it."""
        return BatchSpec(str(self.source), str(self.output), "tiny", PARAMETERS, **OPTIONS)

    def segments(self) -> set[str]:
        """Names of the committed segments."""
        return {path.name for path in self.parts.glob("seg-*")}

    def answered(self) -> list[int]:
        """Row numbers in all whole segments, once for every time they were answered."""
        footers = [read_footer(self.parts / name) for name in sorted(self.segments())]
        return sorted(row & ~FAILED for footer in footers if footer for row in footer.rows)

    def runner(self, *, largest_file: int | None = None) -> subprocess.Popen[bytes]:
        """A process that sends the rows, as the operator does.

        :param largest_file: bytes after which its disk is full.
        """
        size = largest_file or resource.RLIM_INFINITY
        code = "import json, resource, sys; from airflow_arcadia.batch import *; s, u, size = sys.argv[1:]; "
        code += "resource.setrlimit(resource.RLIMIT_FSIZE, (int(size), -1)); "
        code += "run_batch(BatchSpec(**json.loads(s)), [Endpoint(u)])"
        return subprocess.Popen(
            [sys.executable, "-c", code, json.dumps(self.spec.to_dict()), self.worker.url, str(size)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            cwd=ROOT,
        )

    def wait_for_a_segment(self, runner: subprocess.Popen[bytes] | None = None) -> None:
        """Until one more is committed: each disturbance meets a job that goes on."""
        before = self.segments()

        def committed() -> bool:
            if runner is not None and runner.poll() is not None:
                stderr = runner.stderr.read().decode() if runner.stderr else ""
                raise AssertionError(f"the runner ended with {runner.returncode}: {stderr}")
            return bool(self.segments() - before)

        wait_for(committed, 120, "a committed segment")

    @contextmanager
    def sending(self) -> Iterator[subprocess.Popen[bytes]]:
        """A runner, killed at the end."""
        runner = self.runner()
        try:
            yield runner
        finally:
            runner.kill()
            runner.wait()

    def kill(self, process: psutil.Process) -> None:
        """SIGKILL, as the kernel's out-of-memory killer sends it."""
        process.kill()
        self.kills += 1

    def restart_worker(self) -> None:
        """Launch it again, as a retry of the task does."""
        relaunch(self.worker)
        assert isinstance(self.worker.wait_until_decided(), Ready)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("chaos")


@pytest.fixture(scope="module")
def worker(folder: Path, worker_python: str, tiny_model: str) -> Iterator[Served]:
    with real_ray(folder / "ray", worker_python) as head:
        store = LeaseStore(folder / "connect")
        ray = provision(head.config, 0, 2, lease="unowned", backend=LocalRayBackend(store, worker_python))
        settings = {"served_model_name": "tiny", "port": free_port()}
        with served(folder / "worker", worker_python, tiny_model, ray=ray, **settings) as running:
            yield running


def write_rows(path: Path, count: int) -> Path:
    """Prompts, one of which is too long for the model."""
    rows = [{"custom_id": str(i % 100), "prompt": f"def function_{i}(value):"} for i in range(count)]
    rows[7] = {"prompt": "too long " * 2000}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def ranks() -> list[psutil.Process]:
    return [p for p in psutil.process_iter(["name"]) if "RayWorkerProc" in (p.info["name"] or "")]


def kill_runners(job: Job, count: int, chance: random.Random) -> None:
    for _ in range(count):
        with job.sending() as runner:
            job.wait_for_a_segment(runner)
            # Somewhere in the next few commits.
            wait_for(lambda: chance.random() < 0.3, 5, "the moment")
            job.kill(psutil.Process(runner.pid))


def kill_worker_while_sending(job: Job, victim: Callable[[], psutil.Process]) -> None:
    """The runner lives on, waits for the worker's return, and goes on with it."""
    with job.sending() as runner:
        job.wait_for_a_segment(runner)
        job.kill(victim())
        wait_for(lambda: job.worker.look().status.value == "failed", 60, "the worker's end to be seen")
        job.restart_worker()
        job.wait_for_a_segment(runner)


def kill_worker_that_runs_the_batch(job: Job) -> None:
    """It goes on by itself once it is launched again."""
    asyncio.run(job.worker.batches.submit(job.spec))
    job.wait_for_a_segment()
    job.kill(psutil.Process(job.worker.handle.where["pid"]))
    wait_for(lambda: job.worker.look().status.value == "failed", 60, "the worker's end to be seen")
    job.restart_worker()
    job.wait_for_a_segment()


@pytest.mark.parametrize("plan", [SHORT, pytest.param(LONG, marks=pytest.mark.chaos)], ids=["short", "long"])
def test_kills_lose_no_row_and_repeat_no_committed_one(worker: Served, folder: Path, plan: Plan):
    chance = random.Random(1)
    source = write_rows(folder / f"{plan.rows}-rows.jsonl", plan.rows)
    calm = Job(worker, source, folder / f"{plan.rows}-calm.jsonl")
    summary = run_batch(calm.spec, [Endpoint(worker.url)])
    assert (summary.ok, summary.failed) == (plan.rows - 1, 1)

    job = Job(worker, source, folder / f"{plan.rows}-chaos.jsonl")
    part = plan.runner_kills // (2 * plan.rounds)
    for _ in range(plan.rounds):
        kill_runners(job, part, chance)
        kill_worker_while_sending(job, lambda: psutil.Process(worker.handle.where["pid"]))
        kill_worker_while_sending(job, lambda: chance.choice(ranks()))
        tear_the_last_segment(job)
        kill_worker_that_runs_the_batch(job)
    # A runner takes over from the batch that the worker goes on with: only the later of the two commits.
    fill_the_disk(job)
    kill_runners(job, plan.runner_kills - plan.rounds * part, chance)

    assert job.kills == plan.runner_kills + 3 * plan.rounds
    assert not job.output.exists()
    assert len(job.answered()) < plan.rows, "the job was done before the last kill"
    last = job.runner()
    assert last.wait(300) == 0
    assert job.output.read_bytes() == calm.output.read_bytes()
    assert job.answered() == list(range(plan.rows)), "a committed row was answered again, or one is missing"


def tear_the_last_segment(job: Job) -> None:
    """As a crash of the machine may: its rows are answered again, and nothing else is."""
    torn = job.parts / max(job.segments())
    with torn.open("r+b") as file:
        file.truncate(torn.stat().st_size - 5)


def fill_the_disk(job: Job) -> None:
    """A runner that may write no file of more than a few hundred bytes."""
    runner = job.runner(largest_file=600)
    _, said = runner.communicate(timeout=120)
    assert runner.returncode != 0
    assert b"full" in said
