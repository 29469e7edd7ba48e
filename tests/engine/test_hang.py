"""A real engine that hangs: named while it lasts, forgiven when it recovers, ended when it does not."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import requests

from airflow_arcadia.readiness import Failed, Ready, Waiting
from airflow_arcadia.worker import WorkerStatus
from tests.conftest import wait_for
from tests.engine.serving import Served, served

pytestmark = [pytest.mark.engine, pytest.mark.timeout(400)]
HANG_TIMEOUT, RESTART_TIMEOUT = 3.0, 8.0


@pytest.fixture
def worker(tmp_path: Path, worker_python: str, tiny_model: str) -> Iterator[Served]:
    limits = {"hang_timeout": HANG_TIMEOUT, "hang_restart_timeout": RESTART_TIMEOUT}
    with served(tmp_path / "worker", worker_python, tiny_model, **limits) as running:
        yield running


def core(worker: Served) -> psutil.Process:
    """The engine core's process."""
    family = psutil.Process(worker.handle.where["pid"]).children(recursive=True)
    return next(process for process in family if "EngineCore" in process.name())


def is_hung(worker: Served) -> bool:
    return requests.get(f"{worker.url}/health", timeout=10).status_code == 503


def test_a_hang_is_named_and_ends_the_worker_unless_it_recovers(worker: Served):
    stopped = core(worker)
    with ThreadPoolExecutor() as pool:
        stopped.send_signal(signal.SIGSTOP)
        asked = pool.submit(worker.complete, "import")
        wait_for(lambda: is_hung(worker), 20, "the hang to be named")
        started = time.monotonic()
        seen = worker.look()
        assert time.monotonic() - started < 10
        assert isinstance(seen, Waiting)
        assert (seen.status, "the engine hangs" in seen.what) == (WorkerStatus.HUNG, True)
        stopped.send_signal(signal.SIGCONT)
        assert asked.result(60)
        wait_for(lambda: isinstance(worker.look(), Ready), 20, "the worker to be ready again")
        stopped.send_signal(signal.SIGSTOP)
        asked = pool.submit(worker.post, "/v1/completions", {"prompt": "import", "max_tokens": 5})
        wait_for(lambda: isinstance(worker.look(), Failed), 40, "the worker to end")
        # The server is ended while it answers: with an error, or not at all.
        assert asked.exception(20) is not None or asked.result().status_code >= 500
    failed = worker.look()
    assert "stopping: the engine hangs: no token for 3 s" in failed.what
    assert worker.leftovers == []
