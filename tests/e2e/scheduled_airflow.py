"""A real Airflow on loopback: API server, DAG processor, scheduler and triggerer on SQLite."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

BIN = Path(sys.executable).parent
# Log servers would listen on every address; the tests read the log files instead.
COMPONENTS = (
    ("api-server",),
    ("dag-processor",),
    ("scheduler", "--skip-serve-logs"),
    ("triggerer", "--skip-serve-logs"),
)
ENDED = frozenset({"success", "failed", "skipped", "upstream_failed", "removed"})


@dataclass
class ScheduledAirflow:
    """Its REST API, as far as the tests need it."""

    url: str
    home: Path
    session: requests.Session
    components: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    """The running components by name; each leads a process group of its own."""
    start_component: Callable[[str], None] = lambda name: None
    environment: Mapping[str, str] = field(default_factory=dict)
    """Of its components."""

    def kill(self, name: str) -> None:
        """SIGKILL to a component and everything it started."""
        process = self.components.pop(name)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def request(self, method: str, path: str, **kwargs: Any) -> Any:
        """One call under ``/api/v2``; raises on an HTTP error."""
        response = self.session.request(method, f"{self.url}/api/v2{path}", timeout=30, **kwargs)
        assert response.ok, f"{method} {path}: {response.status_code} {response.text}"
        return response.json() if response.content else None

    def trigger(self, dag_id: str, conf: Mapping[str, Any] | None = None) -> str:
        """Start a run by hand; returns its id."""
        self.wait_for(lambda: self.dag_exists(dag_id), 60, f"{dag_id} to be parsed")
        self.request("PATCH", f"/dags/{dag_id}", json={"is_paused": False})
        body = {"logical_date": None, "conf": dict(conf or {})}
        return str(self.request("POST", f"/dags/{dag_id}/dagRuns", json=body)["dag_run_id"])

    def run_state(self, dag_id: str, run_id: str) -> str:
        """State of the run."""
        return str(self.request("GET", f"/dags/{dag_id}/dagRuns/{run_id}")["state"])

    def task_states(self, dag_id: str, run_id: str) -> dict[str, str | None]:
        """Task id → state."""
        listed = self.request("GET", f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances")["task_instances"]
        return {item["task_id"]: item["state"] for item in listed}

    def task(self, dag_id: str, run_id: str, task_id: str) -> dict[str, Any]:
        """One task instance, whole."""
        found: dict[str, Any] = self.request(
            "GET", f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}"
        )
        return found

    def mark(self, dag_id: str, run_id: str, task_id: str, state: str) -> None:
        """What "Mark state as …" does in the UI."""
        self.request(
            "PATCH",
            f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}",
            json={"new_state": state},
        )

    def wait_for(self, condition: Callable[[], Any], timeout_s: float, what: str) -> Any:
        """Poll for evidence; fails naming what never came."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if found := condition():
                return found
            time.sleep(0.25)
        raise AssertionError(f"waited {timeout_s:.0f} s for {what}")

    def wait_for_run(self, dag_id: str, run_id: str, timeout_s: float) -> str:
        """The run's final state."""
        return str(
            self.wait_for(
                lambda: (s := self.run_state(dag_id, run_id)) in ENDED and s, timeout_s, f"{dag_id} to end"
            )
        )

    def log(self, dag_id: str, run_id: str, task_id: str) -> str:
        """Everything the task logged, all tries together."""
        folder = self.home / "logs" / f"dag_id={dag_id}" / f"run_id={run_id}" / f"task_id={task_id}"
        return "\n".join(path.read_text() for path in sorted(folder.rglob("*.log*")))

    def answers(self) -> bool:
        """Whether the API server answers; it refuses connections before it does."""
        return self.session.get(f"{self.url}/api/v2/monitor/health", timeout=30).ok

    def dag_exists(self, dag_id: str) -> bool:
        return bool(self.session.get(f"{self.url}/api/v2/dags/{dag_id}", timeout=30).ok)


@contextlib.contextmanager
def scheduled_airflow(
    home: Path, dags: Path, port: int, env: Mapping[str, str]
) -> Iterator[ScheduledAirflow]:
    """Start all components, each in a process group of its own, and end them with their children."""
    url = f"http://127.0.0.1:{port}"
    full = {key: value for key, value in os.environ.items() if not key.startswith("AIRFLOW")} | {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{url}/execution/",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__BASE_URL": url,
        "AIRFLOW__API_AUTH__JWT_SECRET": "only-for-this-test-only-for-this-test-only-for-this-test",
        "AIRFLOW__API__SECRET_KEY": "only-for-this-test",
        "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.1",
        "AIRFLOW__TRIGGERER__JOB_HEARTBEAT_SEC": "1",
        "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "5",
        "AIRFLOW__API__WORKERS": "1",
        "AIRFLOW__CORE__PARALLELISM": "4",
        # A task whose process was killed is noticed by its own supervisor at once; this is for the rest.
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "30",
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        **env,
    }
    full.pop("PYTHONDONTWRITEBYTECODE", None)
    airflow = str(BIN / "airflow")
    home.mkdir(parents=True, exist_ok=True)
    instance = ScheduledAirflow(url, home, requests.Session(), environment=full)
    with (home / "components.log").open("ab") as log:
        subprocess.run([airflow, "db", "migrate"], env=full, stdout=log, stderr=log, check=True)

        def start(name: str) -> None:
            instance.components[name] = subprocess.Popen(
                [airflow, *next(words for words in COMPONENTS if words[0] == name)],
                env=full,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

        instance.start_component = start
        try:
            for component, *_ in COMPONENTS:
                start(component)
            instance.wait_for(
                lambda: _healthy(url), 120, f"Airflow to be healthy (see {home}/components.log)"
            )
            token = requests.get(f"{url}/auth/token", timeout=30).json()["access_token"]
            instance.session.headers["Authorization"] = f"Bearer {token}"
            yield instance
        finally:
            _end(list(instance.components.values()))


def _healthy(url: str) -> bool:
    try:
        health = requests.get(f"{url}/api/v2/monitor/health", timeout=5).json()
    except (requests.RequestException, ValueError):
        return False
    return all(
        health.get(part, {}).get("status") == "healthy"
        for part in ("scheduler", "triggerer", "dag_processor")
    )


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    for sign in (signal.SIGTERM, signal.SIGKILL):
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, sign)
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=10)
