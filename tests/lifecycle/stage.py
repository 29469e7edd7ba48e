"""A whole Airflow with workers that are stand-ins under the real supervisor, and what a run leaves behind."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from airflow_arcadia.lease import Identity
from airflow_arcadia.lease_store import LeaseStore
from airflow_arcadia.ports import free_port
from airflow_arcadia.processes import LEASE_VARIABLE, find_marked, shm_files
from airflow_arcadia.runtime.shared_memory import ENGINE_FILE
from tests.conftest import ROOT
from tests.e2e.scheduled_airflow import ScheduledAirflow, scheduled_airflow
from tests.ray_cluster.real_ray import clusters_yaml, unused_cluster

HERE = Path(__file__).parent
ROWS = (10, 150, 200, 250, 600, 900, 20_000)
_NOTE_EVERY_S = 0.5
_MAY_MAP = frozenset({"engine", "rank", "server"})


@dataclass
class Stage:
    """What the cases share."""

    airflow: ScheduledAirflow
    store: LeaseStore
    folder: Path
    env: dict[str, str]
    changing: threading.Lock = field(default_factory=threading.Lock)
    """Held while the API server changes something: on SQLite two changes at once wait for each other."""
    engines: dict[str, set[str]] = field(default_factory=dict)
    """Files under /dev/shm that the engine of a lease has mapped, by lease."""
    shared: dict[str, set[str]] = field(default_factory=dict)
    """Leases of the warm workers that a run has used, by the run's own lease."""

    def lease(self, run: Run) -> str:
        """Name of the run's lease."""
        return Identity(run.dag_id, run.run_id, "worker").lease_name

    def leftovers(self, run: Run) -> list[str]:
        """Everything of the run that is still there: processes, shared memory, its lease's directory."""
        return [text for name in self.leases(run) for text in self._left_of(name)]

    def leases(self, run: Run) -> list[str]:
        """The run's lease, and those of the warm workers that it has used."""
        name = self.lease(run)
        return [name, *sorted(self.shared.get(name, ()))]

    def _left_of(self, lease: str) -> list[str]:
        found = []
        for process in find_marked(lease):
            with contextlib.suppress(psutil.Error, OSError):
                found.append(role_of(process))
        found += sorted(path for path in self.engines.get(lease, ()) if Path(path).exists())
        return found + (["lease directory"] if (self.store.root / lease).exists() else [])

    def note_uses(self) -> None:
        """Remember which warm workers a run uses: once it has ended, nothing tells."""
        for lease in self.store.warm():
            for use in lease.warm.uses if lease.warm else ():
                self.shared.setdefault(use.user, set()).add(lease.name)

    def note_shared_memory(self) -> None:
        """Remember which files every run's engine has: once it is dead, nothing tells whose they were."""
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                name = process.environ().get(LEASE_VARIABLE)
                if name and (self.store.root / name).exists() and role_of(process) in _MAY_MAP:
                    found = filter(ENGINE_FILE.match, shm_files([process.pid]))
                    self.engines.setdefault(name, set()).update(found)

    def processes(self, run: Run, role: str) -> list[psutil.Process]:
        """The run's processes of that role: see :func:`role_of`."""
        found = [process for name in self.leases(run) for process in find_marked(name)]
        return [process for process in found if role_of(process) == role]

    def start(self, dag_id: str, conf: Mapping[str, Any]) -> Run:
        """Start a run, unpausing its DAG where needed."""
        run_id = f"manual__{uuid.uuid4().hex[:12]}"
        body = {"logical_date": None, "conf": dict(conf), "dag_run_id": run_id}
        wait(lambda: self.airflow.dag_exists(dag_id), 90, f"{dag_id} to be parsed")
        self.request("PATCH", f"/dags/{dag_id}", {"is_paused": False})
        self.request("POST", f"/dags/{dag_id}/dagRuns", body, done_by="already exists")
        return Run(self, dag_id, run_id)

    def request(self, method: str, path: str, body: Any, done_by: str = "") -> None:
        """A change by the REST API, asked for again while SQLite is locked by another component.

        :param done_by: part of the refusal that means that an earlier request did it.
        """

        def ask() -> bool:
            try:
                with self.changing:
                    self.airflow.request(method, path, json=body)
            except AssertionError as error:
                if done_by and done_by in str(error):
                    return True
                if "Database error" in str(error):
                    return False
                raise
            return True

        wait(ask, 120, f"{method} {path}")

    def query(self, sql: str, *values: str) -> list[tuple[Any, ...]]:
        """Rows of Airflow's database: many cases look often, and the REST API may be away."""
        path = self.airflow.home / "airflow.db"
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            return database.execute(sql, values).fetchall()

    def kill_tasks(self) -> None:
        """SIGKILL to the process of every running task: none is in the group of a component."""
        for (pid,) in self.query("SELECT pid FROM task_instance WHERE state = 'running' AND pid IS NOT NULL"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def reap(self) -> str:
        """One sweep of the reaper's command line; what it says."""
        argv = [sys.executable, "-m", "airflow_arcadia.reap", "--conn-id", "arcadia_default"]
        done = subprocess.run(argv, env=self.env, capture_output=True, text=True, check=False)
        return done.stdout + done.stderr


@dataclass
class Run:
    """One run of a DAG of the matrix."""

    stage: Stage
    dag_id: str
    run_id: str

    @property
    def state(self) -> str:
        """State of the run."""
        return str(self._query("SELECT state FROM dag_run WHERE dag_id = ? AND run_id = ?")[0][0])

    def states(self) -> dict[str, str | None]:
        """Task id without the group → state."""
        found = self._query("SELECT task_id, state FROM task_instance WHERE dag_id = ? AND run_id = ?")
        return {task.removeprefix("worker."): state for task, state in found}

    def seconds(self) -> dict[str, float | None]:
        """Task id without the group → what its last try took."""
        found = self._query("SELECT task_id, duration FROM task_instance WHERE dag_id = ? AND run_id = ?")
        return {task.removeprefix("worker."): duration for task, duration in found}

    def pid(self, name: str) -> int:
        """Process of a task."""
        found = self._query("SELECT task_id, pid FROM task_instance WHERE dag_id = ? AND run_id = ?")
        return int(dict(found)[f"worker.{name}"])

    def _query(self, sql: str) -> list[tuple[Any, ...]]:
        """What Airflow's database says of the run."""
        return self.stage.query(sql, self.dag_id, self.run_id)

    def mark_task(self, name: str, state: str) -> None:
        """What "Mark state as …" does to a task."""
        path = f"/dags/{self.dag_id}/dagRuns/{self.run_id}/taskInstances/worker.{name}"
        self.stage.request("PATCH", path, {"new_state": state})

    def mark_run(self, state: str) -> None:
        """What "Mark state as …" does to the run."""
        path = f"/dags/{self.dag_id}/dagRuns/{self.run_id}"
        self.stage.request("PATCH", path, {"state": state})

    def clear(self, *names: str, downstream: bool = False) -> None:
        """What "Clear" does to tasks."""
        body = {
            "dry_run": False,
            "dag_run_id": self.run_id,
            "task_ids": [f"worker.{name}" for name in names],
            "only_failed": False,
            "include_downstream": downstream,
            "reset_dag_runs": True,
        }
        self.stage.request("POST", f"/dags/{self.dag_id}/clearTaskInstances", body)

    def release(self) -> None:
        """Let a step that is held go on."""
        (self.stage.folder / "at" / self.run_id / "released").touch()

    def reached(self, step: str) -> bool:
        """Whether a step that can be held is at its end (the teardown: at its beginning)."""
        return (self.stage.folder / "at" / self.run_id / step).exists()

    def rows(self) -> int:
        """Rows of the output; 0 while there is none."""
        path = self.stage.folder / "out" / f"{self.run_id}.jsonl"
        return len(path.read_text().splitlines()) if path.exists() else 0

    def answering(self) -> bool:
        """Whether the batch has answered some rows."""
        log = self.stage.airflow.log(self.dag_id, self.run_id, "worker.answer")
        return " rows" in log and "rows answered" not in log


def role_of(process: psutil.Process) -> str:
    """``supervisor``, ``server``, ``engine``, ``rank``, ``watchdog``; of a Ray head ``head``, ``gcs``, …"""
    words = process.cmdline()
    title = words[0] if words else ""
    for module, role in _MODULES.items():
        if module in words:
            return role
    if title.startswith("ray::"):
        return "rank"
    if "EngineCore" in title or any("psm_life" in word for word in words):
        return "engine"
    return "gcs" if title.endswith("gcs_server") else Path(title).name or "ended"


_MODULES = {
    "airflow_arcadia.runtime": "supervisor",
    "airflow_arcadia.runtime.supervisor": "head",
    "airflow_arcadia.runtime.watchdog": "watchdog",
    "vllm.entrypoints.openai.api_server": "server",
}


@contextlib.contextmanager
def lifecycle_stage(folder: Path, *, parallelism: int = 8, real_model: str = "") -> Iterator[Stage]:
    """Start the Airflow, and end it and whatever a case has left.

    :param parallelism: tasks at once.
    :param real_model: folder of a model that the real engine serves; by default a stand-in serves nothing.
    """
    write_inputs(folder)
    # A case may delete the file of its DAG.
    shutil.copytree(HERE / "dags", folder / "dags", ignore=shutil.ignore_patterns("__pycache__"))
    store = LeaseStore(folder / "state")
    extra = {
        "arcadia_config_yaml": clusters_yaml(unused_cluster()) if real_model else "rayClusters: []",
        "worker_python": _real_python() if real_model else str(_stand_in_python(folder)),
        "state_dir": str(store.root),
    }
    env = airflow_variables(folder, extra, parallelism) | {"LIFECYCLE_MODEL": real_model}
    home = folder / "airflow"
    with scheduled_airflow(home, folder / "dags", free_port(), env) as airflow:
        full = {**os.environ, **env, "AIRFLOW_HOME": str(home)}
        stage = Stage(airflow, store, folder, full)
        with stopping(stage):
            yield stage


@contextlib.contextmanager
def stopping(stage: Stage) -> Iterator[None]:
    """Keep the stage meanwhile, see :func:`_keep`; afterwards end whatever a case has left."""
    done = threading.Event()
    keeping = threading.Thread(target=_keep, args=(stage, done), name="stage", daemon=True)
    keeping.start()
    try:
        yield
    finally:
        done.set()
        keeping.join()
        _end_all(stage)


def airflow_variables(folder: Path, extra: Mapping[str, str], parallelism: int) -> dict[str, str]:
    """The environment of an Airflow whose ``arcadia`` connection has these extras."""
    return {
        "AIRFLOW_CONN_ARCADIA_DEFAULT": json.dumps({"conn_type": "arcadia", "extra": dict(extra)}),
        "LIFECYCLE_FOLDER": str(folder),
        "PYTHONPATH": str(ROOT),
        "AIRFLOW__CORE__PARALLELISM": str(parallelism),
        "AIRFLOW__CORE__MAX_ACTIVE_TASKS_PER_DAG": "50",
        "AIRFLOW__SCHEDULER__TRIGGER_TIMEOUT_CHECK_INTERVAL": "2",
        # A scheduler that was killed is given up, and its tasks are taken over, in seconds.
        "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "30",
        "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "10",
        # Files are parsed when they appear; again and again would only take time from the cases.
        "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "3600",
        "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.3",
        "AIRFLOW__LOGGING__LOGGING_LEVEL": "INFO",
        # Airflow fails a task whose start its API server does not confirm within 5 s, asked five times.
        "AIRFLOW__WORKERS__EXECUTION_API_TIMEOUT": "60",
        # And it kills one that could not report for 15 s: an API server may take longer to start.
        "AIRFLOW__WORKERS__MAX_FAILED_HEARTBEATS": "36",
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "300",
        "AIRFLOW__WORKERS__EXECUTION_API_RETRIES": "12",
        "AIRFLOW__WORKERS__EXECUTION_API_RETRY_WAIT_MAX": "10",
    }


def write_inputs(folder: Path) -> None:
    """Make the rows that the DAGs read, and the folder that they write to."""
    (folder / "out").mkdir(parents=True, exist_ok=True)
    for rows in ROWS:
        lines = "".join(json.dumps({"prompt": f"number {i}"}) + "\n" for i in range(rows))
        (folder / f"in-{rows}.jsonl").write_text(lines)


def _keep(stage: Stage, done: threading.Event) -> None:
    """Until it is over, note what the engines map, and start again what of Airflow has ended by itself."""
    while not done.wait(_NOTE_EVERY_S):
        stage.note_shared_memory()
        stage.note_uses()
        for name, process in list(stage.airflow.components.items()):
            if process.poll() is not None and stage.airflow.components.get(name) is process:
                print(f"{name} ended with exit code {process.returncode} and is started again", flush=True)
                stage.airflow.start_component(name)


def _real_python() -> str:
    return str(ROOT / ".venv-worker" / "bin" / "python")


def _stand_in_python(folder: Path) -> Path:
    """A Python of a worker's environment in which vLLM is the stand-in."""
    python = folder / "worker-python"
    stand_in = HERE / "stand_in"
    python.write_text(f'#!/bin/sh\nexport PYTHONPATH={stand_in}:{ROOT}\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return python


def _end_all(stage: Stage) -> None:
    """End every process that a case has left, and its shared memory."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            environ = process.environ()
            name, file = environ.get(LEASE_VARIABLE), environ.get("ARCADIA_LEASE_FILE", "")
            if file.startswith(str(stage.store.root)) or (name and name in stage.store.names()):
                process.kill()
    for path in (path for paths in stage.engines.values() for path in paths):
        Path(path).unlink(missing_ok=True)


def wait(condition: Any, timeout_s: float, what: str) -> Any:
    """Poll a whole Airflow for evidence; an error of its REST API, or of its database, is no evidence."""
    deadline, error = time.monotonic() + timeout_s, ""
    while time.monotonic() < deadline:
        try:
            if found := condition():
                return found
        except (AssertionError, OSError, sqlite3.OperationalError) as failed:
            error = f" ({failed})"
        time.sleep(0.3)
    raise TimeoutError(f"waited {timeout_s:.0f} s for {what}{error}")
