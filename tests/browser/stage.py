"""A whole Airflow with a stand-in for the engine, and a Ray dashboard that can go away."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import requests

from airflow_arcadia.lease import Identity
from airflow_arcadia.lease_store import LeaseStore
from airflow_arcadia.ports import free_port
from airflow_arcadia.processes import end, find_marked
from tests.conftest import ROOT
from tests.e2e.scheduled_airflow import ScheduledAirflow, scheduled_airflow
from tests.fake_ray_dashboard import VERSIONS, ray_dashboard

HERE = Path(__file__).parent
STAND_IN = HERE / "stand_in"
PREFIX = "/team/airflow"
"""Path below which the second API server is served, as behind a reverse proxy."""
CONFIG = """\
rayClusters:
- name: two-gpus
  headAddress: 127.0.0.1:6379
  dashboardHost: 127.0.0.1:{dashboard}
"""


@dataclass
class Stage:
    """What the tests share.

    :param config: arcadia-config as a person would paste it.
    :param dashboard: server of the Ray dashboard.
    """

    airflow: ScheduledAirflow
    folder: Path
    store: LeaseStore
    config: str
    dashboard: Any

    def trigger(self, dag_id: str, conf: Mapping[str, Any] | None = None) -> Run:
        """Start a run."""
        return Run(self, dag_id, self.airflow.trigger(dag_id, conf))

    def audit_log(self, event: str) -> list[dict[str, Any]]:
        """Entries of Airflow's audit log."""
        found: list[dict[str, Any]] = self.airflow.request("GET", f"/eventLogs?event={event}")["event_logs"]
        return found


@dataclass
class Run:
    """One run."""

    stage: Stage
    dag_id: str
    run_id: str
    group: str = "qwen"

    @property
    def state(self) -> str:
        """State of the run."""
        return self.stage.airflow.run_state(self.dag_id, self.run_id)

    @property
    def lease(self) -> str:
        """Name of its lease."""
        return Identity(self.dag_id, self.run_id, self.group).lease_name

    def states(self) -> dict[str, str | None]:
        """Task id without the group → state."""
        found = self.stage.airflow.task_states(self.dag_id, self.run_id)
        return {task.removeprefix(f"{self.group}."): state for task, state in found.items()}

    def path(self, task: str) -> str:
        """Path of a task instance's page."""
        return f"/dags/{self.dag_id}/runs/{self.run_id}/tasks/{self.group}.{task}"

    def wait_for(self, state: str, timeout_s: float = 240) -> None:
        """Until the run is in that state."""
        self.stage.airflow.wait_for(lambda: self.state == state, timeout_s, f"{self.dag_id} to be {state}")

    def wait_for_rows(self) -> None:
        """Until some rows are answered."""
        log = lambda: self.stage.airflow.log(self.dag_id, self.run_id, f"{self.group}.answer")  # noqa: E731
        self.stage.airflow.wait_for(lambda: " rows/s" in log(), 240, f"rows of {self.dag_id}")

    def processes(self) -> list[psutil.Process]:
        """Those of its worker."""
        return list(find_marked(self.lease))

    def stop_answering(self) -> None:
        """Make the worker's server hang, as one without CPU would."""
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                if "vllm.entrypoints.openai.api_server" in process.cmdline():
                    process.suspend()

    def output(self) -> list[bytes]:
        """The lines of its answers."""
        return (self.stage.folder / "out" / f"{self.run_id}.jsonl").read_bytes().splitlines()


@contextlib.contextmanager
def browser_stage(folder: Path) -> Iterator[Stage]:
    """Start it, and end it and the workers that tests have left."""
    (folder / "out").mkdir(parents=True)
    (folder / "poison").touch()
    for rows in (10, 3000):
        prompts = [
            f"What is {i} + {i}?" + (" poison" if rows == 10 and i in {3, 7} else "") for i in range(rows)
        ]
        lines = "".join(
            json.dumps({"custom_id": f"sum-{i}", "prompt": p}) + "\n" for i, p in enumerate(prompts)
        )
        (folder / f"in-{rows}.jsonl").write_text(lines)
    dags = folder / "dags"
    dags.mkdir()
    shipped = ROOT / "dags" / "arcadia_batch_inference.py"
    for path in (HERE / "dags" / "pages.py", shipped):
        shutil.copy(path, dags)
    # The same DAG once more, for runs that fail: the first one has one run at a time.
    again = shipped.read_text().replace('"arcadia_batch_inference"', '"inference_with_faults"')
    (dags / "with_faults.py").write_text(again.replace("max_active_runs=1", "max_active_runs=9"))
    store = LeaseStore(folder / "state")
    env = {
        "BROWSER_FOLDER": str(folder),
        "PYTHONPATH": str(ROOT),
        "AIRFLOW__CORE__PARALLELISM": "8",
        "AIRFLOW__CORE__TEST_CONNECTION": "Enabled",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "vera:viewer",
        "ARCADIA_MODEL": "org/stand-in",
        "ARCADIA_NUM_GPUS": "1",
        "ARCADIA_INPUT": str(folder / "in-10.jsonl"),
        "ARCADIA_OUTPUT": str(folder / "out" / "form-%H%M%S.jsonl"),
    }
    with (
        ray_dashboard(used=1.0) as dashboard,
        scheduled_airflow(folder / "airflow", dags, free_port(), env) as airflow,
    ):
        config = CONFIG.format(dashboard=dashboard.server_port)
        extra = {
            "arcadia_config_yaml": config,
            "worker_python": str(_worker_python(folder)),
            "state_dir": str(store.root),
        }
        body = {
            "connection_id": "arcadia_default",
            "conn_type": "arcadia",
            "port": 0,  # see demo.local.arcadia_connection
            "extra": json.dumps(extra),
        }
        airflow.request("POST", "/connections", json=body)
        try:
            yield Stage(airflow, folder, store, config, dashboard)
        finally:
            for name in store.names():
                end(None, name, grace_s=0)
            _end_engines(folder)


def _worker_python(folder: Path) -> Path:
    """A program that starts the stand-in, and tells versions as a worker's Python does."""
    python = folder / "worker-python"
    versions = f"{VERSIONS['rayVersion']} {VERSIONS['pythonVersion']}"
    python.write_text(
        "#!/bin/sh\n"
        f'if [ "$1" = -c ]; then case "$2" in *ray*) echo {versions}; exit;; esac; fi\n'
        f'export PYTHONPATH={STAND_IN}:{ROOT}\nexec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    return python


def _end_engines(folder: Path) -> None:
    """End stand-ins' engines: they ignore SIGTERM, and their file under /dev/shm outlives them."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get("ARCADIA_LEASE_FILE", "").startswith(str(folder)):
                process.kill()
                Path(f"/dev/shm/psm_life{process.pid}").unlink(missing_ok=True)


@contextlib.contextmanager
def api_server_for_viewers(stage: Stage) -> Iterator[tuple[str, str]]:
    """A second API server of the same Airflow, below a path, where people log in.

    :return: its URL, and the password of the viewer *vera*.
    """
    port = free_port()
    url = f"http://127.0.0.1:{port}{PREFIX}"
    env = {
        **stage.airflow.environment,
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__BASE_URL": url,
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "False",
    }
    airflow = Path(sys.executable).with_name("airflow")
    with (stage.folder / "second-api-server.log").open("wb") as log:
        process = subprocess.Popen(
            [airflow, "api-server"], env=env, stdout=log, stderr=log, start_new_session=True
        )
    try:
        stage.airflow.wait_for(lambda: _answers(url), 90, "the second API server")
        home = stage.airflow.home
        passwords = json.loads((home / "simple_auth_manager_passwords.json.generated").read_text())
        yield url, passwords["vera"]
    finally:
        os.killpg(process.pid, 15)
        process.wait(timeout=30)


def _answers(url: str) -> bool:
    with contextlib.suppress(requests.RequestException):
        return requests.get(f"{url}/api/v2/version", timeout=5).ok
    return False
