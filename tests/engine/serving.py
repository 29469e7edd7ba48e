"""Real workers and a real FastChat, for tests."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

from airflow_arcadia.batch import Endpoint
from airflow_arcadia.batch.batch_api import RemoteBatches
from airflow_arcadia.kubernetes.pod_template import API_KEY, BATCH_TOKEN
from airflow_arcadia.launchers.probe import observe
from airflow_arcadia.launchers.process import ProcessLauncher
from airflow_arcadia.launchers.teardown import teardown
from airflow_arcadia.lease import Identity
from airflow_arcadia.lease_store import LeaseStore
from airflow_arcadia.ports import free_port
from airflow_arcadia.processes import find_marked
from airflow_arcadia.readiness import Ready, Waiting, decide
from airflow_arcadia.worker import RayConnection, WorkerHandle, WorkerSpec
from tests import shared_memory
from tests.conftest import wait_for

TINY_ENGINE = ("--enforce-eager", "--kv-cache-memory-bytes", "268435456")
STARTUP_TIMEOUT_S = 240.0
TOKEN = "the-token"
"""By which a worker knows tasks of its own run."""


@dataclass
class Served:
    """A worker that was launched for tests."""

    handle: WorkerHandle
    launcher: ProcessLauncher
    store: LeaseStore
    api_key: str | None = None
    before: set[str] = field(default_factory=set)
    spec: WorkerSpec | None = None

    @property
    def url(self) -> str:
        """Its base URL."""
        return self.handle.url

    @property
    def log(self) -> str:
        """All it has logged."""
        return Path(self.handle.where["log"]).read_text()

    def post(self, path: str, body: Any, **kwargs: Any) -> requests.Response:
        """One call with the right key."""
        headers = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        return requests.post(f"{self.url}{path}", json=body, headers=headers, timeout=120, **kwargs)

    def complete(self, prompt: str, max_tokens: int = 24) -> str:
        """Greedy continuation."""
        body = {"model": self.handle.served_model_name, "prompt": prompt, "temperature": 0}
        answer = self.post("/v1/completions", {**body, "max_tokens": max_tokens})
        assert answer.ok, answer.text
        return str(answer.json()["choices"][0]["text"])

    def look(self, timeout_s: float = STARTUP_TIMEOUT_S, started_at: float | None = None) -> Any:
        """One decision about its readiness."""
        seen = asyncio.run(observe(self.launcher, self.handle, self.api_key))
        now = time.time()
        return decide(seen, started_at=started_at or now, now=now, startup_timeout_s=timeout_s)

    def wait_until_decided(self) -> Any:
        """Ready or failed."""

        def decided() -> Any:
            outcome = self.look()
            return None if isinstance(outcome, Waiting) else outcome

        return wait_for(decided, STARTUP_TIMEOUT_S, "the worker to be ready or to fail")

    def end(self) -> list[str]:
        """Tear its lease down; what is left."""
        return teardown(self.store, self.handle.lease, {"process": self.launcher}, grace_s=30)

    @property
    def batches(self) -> RemoteBatches:
        """Its Batch API, as a task of its run sees it."""
        return RemoteBatches(Endpoint(self.url, self.api_key), TOKEN)

    @property
    def leftovers(self) -> list[str]:
        """Its processes, and /dev/shm files that were not there before it."""
        processes = [f"{p.pid} {p.name()}" for p in find_marked(self.handle.lease)]
        return processes + shared_memory.new_files(self.before, self.handle.lease)


def relaunch(worker: Served) -> None:
    """Launch it again under its lease, as a retry of the task does."""
    lease = worker.store.read(worker.handle.lease)
    assert lease is not None
    assert worker.spec is not None
    worker.handle = worker.launcher.launch(worker.spec, lease, ray=worker.handle.ray)


@contextlib.contextmanager
def launched(
    root: Path,
    worker_python: str,
    model: str,
    *,
    ray: RayConnection | None = None,
    api_key: str | None = None,
    port: int = 0,
    **spec: Any,
) -> Iterator[Served]:
    """A worker of its own lease; torn down at the end.

    :param port: where it listens however often it is launched; 0 takes a free one each time.
    """
    store = LeaseStore(root)
    # The whole path: test runs side by side would end each other's workers by a lease name that they share.
    name = store.reserve(Identity("tests", str(root), "worker"), time.time()).name
    settings: dict[str, Any] = {
        "dtype": "float32",
        "max_model_len": 512,
        "max_num_seqs": 16,
        "max_num_batched_tokens": 1024,
        "extra_args": TINY_ENGINE,
        **spec,
    }
    whole = WorkerSpec(
        name=name,
        model=model,
        num_gpus=2 if ray else 1,
        ray_address=ray.address if ray else None,
        ray_dashboard_url=ray.dashboard_url if ray else None,
        **settings,
    )
    secrets = {BATCH_TOKEN: TOKEN} | ({API_KEY: api_key} if api_key else {})
    launcher = ProcessLauncher(store, worker_python, port=port, secrets=secrets)
    before = shared_memory.files()
    lease = store.read(name)
    assert lease is not None
    served = Served(launcher.launch(whole, lease, ray=ray), launcher, store, api_key, before, whole)
    try:
        yield served
    finally:
        assert served.end() == []
        # Tests that run at the same time have shared memory of their own, for a moment.
        with contextlib.suppress(AssertionError):
            wait_for(lambda: served.leftovers == [], 5, "nothing of the worker to be left")
        assert served.leftovers == []


@contextlib.contextmanager
def behind_fastchat(
    folder: Path, worker_python: str, model: str, **settings: Any
) -> Iterator[tuple[Served, str]]:
    """A worker that is ready and listed by a FastChat controller, and the URL of FastChat's API server."""
    folder.mkdir(parents=True, exist_ok=True)
    with (
        fastchat("controller", worker_python, folder) as controller,
        launched(
            folder / "worker", worker_python, model, controller_address=controller, **settings
        ) as worker,
        fastchat("openai_api_server", worker_python, folder, "--controller-address", controller) as gateway,
    ):
        outcome = worker.wait_until_decided()
        assert isinstance(outcome, Ready), outcome
        yield worker, gateway


@contextlib.contextmanager
def served(*args: Any, **kwargs: Any) -> Iterator[Served]:
    """A worker that is ready."""
    with launched(*args, **kwargs) as worker:
        outcome = worker.wait_until_decided()
        assert isinstance(outcome, Ready), outcome
        yield worker


@contextlib.contextmanager
def fastchat(module: str, worker_python: str, folder: Path, *words: str, port: int = 0) -> Iterator[str]:
    """One of FastChat's own servers, unmodified; yields its URL."""
    port = port or free_port()
    with (folder / f"{module}-{port}.log").open("ab") as log:
        process = subprocess.Popen(
            [
                worker_python,
                "-m",
                f"fastchat.serve.{module}",
                "--host",
                "127.0.0.1",
                "--port",
                str(port),
                *words,
            ],
            cwd=folder,
            stdout=log,
            stderr=log,
        )
    url = f"http://127.0.0.1:{port}"

    def listens() -> bool:
        assert process.poll() is None, f"{module} ended: see {folder}"
        with contextlib.suppress(requests.ConnectionError):
            return bool(requests.get(url, timeout=5).status_code)
        return False

    try:
        wait_for(listens, 60, module)
        yield url
    finally:
        process.terminate()
        process.wait(20)
