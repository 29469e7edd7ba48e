"""The worker around a stand-in for vLLM: however it ends, nothing is left and its log says why."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from airflow_arcadia.lease import Lease
from airflow_arcadia.lease_store import LeaseStore
from airflow_arcadia.processes import find_marked, mark
from airflow_arcadia.readiness import likely_cause
from airflow_arcadia.runtime.__main__ import HUNG, SERVER_ENDED, STOPPED, how_it_ended
from airflow_arcadia.worker import PlacedWorker
from tests.conftest import ROOT, wait_for

STAND_IN = ROOT / "tests" / "runtime" / "stand_in"


class Controller(BaseHTTPRequestHandler):
    """Remembers what it was told, as FastChat's controller would."""

    told: list[tuple[str, Any]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.told.append((self.path, json.loads(body)))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"null")

    def log_message(self, *_: Any) -> None:
        """Nothing is logged."""


@pytest.fixture
def controller() -> Iterator[HTTPServer]:
    Controller.told = []
    server = HTTPServer(("127.0.0.1", 0), Controller)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


class Worker:
    """A worker that a test has started."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path, lease: str) -> None:
        self.process, self.log, self.lease = process, log, lease

    @property
    def lines(self) -> list[str]:
        """What it has logged."""
        return self.log.read_text().splitlines()

    def wait_for_core(self) -> tuple[psutil.Process, Path]:
        """The engine core's process and its shared memory."""
        line = wait_for(lambda: [x for x in self.lines if x.startswith("core ")], 20, "the engine core")[0]
        _, pid, path = line.split()
        return psutil.Process(int(pid)), Path(path)

    def is_gone(self) -> bool:
        """Whether none of its processes is left."""
        return find_marked(self.lease) == []


@pytest.fixture
def start(store: LeaseStore, lease: Lease, tmp_path: Path) -> Iterator[Any]:
    started: list[Worker] = []

    def begin(does: str = "serve", *, marked: bool = True, secret: str = "", **spec: Any) -> Worker:
        settings = {"lease_file": str(store.file(lease.name)), **spec}
        whole = PlacedWorker(name="w", model="m", port=1, **settings)
        env = os.environ | whole.to_env() | {"STAND_IN": does}
        env |= {"PYTHONPATH": f"{STAND_IN}:{ROOT}", "PYTHONUNBUFFERED": "1"}
        env |= mark(lease.name, "worker/w") if marked else {}
        env |= {"ARCADIA_BATCH_TOKEN": secret} if secret else {}
        log = tmp_path / "worker.log"
        with log.open("wb") as file:
            words = [sys.executable, "-m", "airflow_arcadia.runtime"]
            process = subprocess.Popen(words, env=env, stdout=file, stderr=file)
        started.append(Worker(process, log, lease.name))
        return started[-1]

    yield begin
    for worker in started:
        worker.process.kill()
        worker.process.wait()


def test_a_killed_supervisor_leaves_nothing_and_the_controller_forgets_the_worker(start, controller):
    worker = start(controller_address=f"http://127.0.0.1:{controller.server_port}")
    _, memory = worker.wait_for_core()
    worker.process.kill()
    wait_for(worker.is_gone, 15, "the end of all its processes")
    assert not memory.exists()
    ((path, told),) = Controller.told
    assert path == "/register_worker"
    assert (told["worker_name"], told["worker_status"]["model_names"]) == ("http://127.0.0.1:1", [])
    assert str(likely_cause(worker.lines)).endswith("was killed")


@pytest.mark.parametrize(("registered", "told"), [("true", 1), ("false", 0)])
def test_a_server_that_could_not_leave_its_controller_is_taken_off_it(start, controller, registered, told):
    does = f'report {{"registered": {registered}}};kill'
    worker = start(does, controller_address=f"http://127.0.0.1:{controller.server_port}")
    assert worker.process.wait(30) == SERVER_ENDED
    assert [path for path, _ in Controller.told] == ["/register_worker"] * told


@pytest.mark.parametrize("ended", ["by its server", "by a kill"])
def test_the_controller_forgets_a_worker_by_the_address_that_it_registered(start, controller, ended):
    address = f"http://127.0.0.1:{controller.server_port}"
    does = 'report {"registered": true};kill' if ended == "by its server" else "serve"
    worker = start(does, controller_address=address, fastchat_port=2)
    if ended == "by a kill":
        worker.wait_for_core()
        worker.process.kill()
    wait_for(lambda: Controller.told, 20, "the controller to be told")
    assert [told["worker_name"] for _, told in Controller.told] == ["http://127.0.0.1:2"]


def test_a_secret_that_came_as_a_variable_is_in_a_file_and_in_no_environment(start):
    worker = start(secret="the-token")
    worker.wait_for_core()
    family = find_marked(worker.lease)
    assert len(family) > 2
    for process in family:
        assert "the-token" not in process.environ().values(), process.cmdline()
    file = Path(psutil.Process(worker.process.pid).environ()["ARCADIA_BATCH_TOKEN_FILE"])
    assert file.read_text() == "the-token"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.unlink()


def test_so_does_one_that_no_launcher_has_marked_and_no_lease_owns(start):
    worker = start(marked=False, lease_file=None)
    core, memory = worker.wait_for_core()
    worker.process.kill()
    wait_for(lambda: not core.is_running() and not memory.exists(), 15, "the core's end")
    wait_for(lambda: "nothing is left" in worker.lines[-1], 10, "the watchdog's end")


def test_a_worker_stopped_as_soon_as_its_engine_mapped_memory_leaves_none(start):
    worker = start(drain_seconds=0)
    _, memory = worker.wait_for_core()
    worker.process.send_signal(signal.SIGTERM)
    assert worker.process.wait(30) == STOPPED
    assert worker.is_gone()
    assert not memory.exists()
    assert likely_cause(worker.lines) == "stopping: SIGTERM received"


def test_a_watchdog_is_not_missed_after_an_orderly_end(start):
    worker = start("exit 0")
    assert worker.process.wait(30) == SERVER_ENDED
    assert worker.is_gone()
    assert worker.lines[-1] == f"arcadia: {how_it_ended(0)}"


@pytest.mark.parametrize(
    ("does", "said"),
    [
        ("exit 0", "shut down, as it does when its engine has died"),
        ("exit 7", "failed with exit code 7"),
        ("kill", "was killed by SIGKILL"),
    ],
)
def test_a_server_that_ended_by_itself_is_named_truthfully(start, does: str, said: str):
    worker = start(does)
    assert worker.process.wait(30) == SERVER_ENDED
    assert said in worker.lines[-1]
    assert "exit code 0" not in worker.lines[-1]


def test_a_hang_that_the_server_reports_ends_the_worker_at_once(start):
    worker = start('report {"end": "no token for 60 s", "hung": true}', drain_seconds=600)
    assert worker.process.wait(30) == HUNG
    assert worker.is_gone()
    assert likely_cause(worker.lines) == "stopping: no token for 60 s"


def test_an_idle_worker_ends_on_purpose(start):
    worker = start('report {"end": "no request for 900 s", "hung": false}', drain_seconds=0)
    assert worker.process.wait(30) == STOPPED
    assert likely_cause(worker.lines) == "stopping: no request for 900 s"


@pytest.mark.parametrize(
    ("variable", "text"),
    [("EXTRA_ARGS", "a 'b"), ("ARCADIA_DRAIN_SECONDS", "nan"), ("ARCADIA_DRAIN_SECONDS", "-5")],
)
def test_an_environment_that_is_not_valid_is_named_and_ends_it_with_2(variable: str, text: str):
    done = subprocess.run(
        [sys.executable, "-m", "airflow_arcadia.runtime"],
        env=os.environ | {"PYTHONPATH": str(ROOT), "FASTCHAT_MODEL_NAME": "m", variable: text},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2
    assert variable in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
