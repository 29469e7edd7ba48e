"""One running compose stack of this checkout, under names and a port of its own, and its Airflow's API."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from airflow_arcadia.ports import free_port
from tests.compose.engine import Engine, EngineError
from tests.conftest import ROOT, wait_for

PROJECT = "arcadia-test-compose"
IMAGE = "localhost/arcadia-test-local"
MIRRORS = ("PIP_INDEX_URL", "PYTORCH_INDEX_URL")
WHEELS = ROOT / "docker" / "wheels"
HEALTHY_S = 300.0
RUN_S = 900.0


class Stack:
    """The stack as a person with ``docker compose`` has it.

    :param images: variables that name the base images.
    :param folder: for the file with the secrets.
    """

    def __init__(self, engine: Engine, images: Mapping[str, str], folder: Path) -> None:
        self.engine = engine
        self.port = free_port()
        secrets = subprocess.check_output([str(ROOT / "docker" / "make-env")], text=True)
        self.secrets = dict(line.split("=", 1) for line in secrets.splitlines())
        chosen = {"AIRFLOW_PORT": str(self.port), "LOCAL_IMAGE": IMAGE, **images}
        # A folder of this machine's is none of the base image's: its wheels are copied instead.
        chosen["PIP_FIND_LINKS"] = ""
        chosen |= {name: os.environ[name] for name in MIRRORS if name in os.environ}
        self._env = {**self.secrets, **chosen}
        self._file = folder / "compose.env"
        self._file.write_text("".join(f"{name}={value}\n" for name, value in self._env.items()))
        self._file.chmod(0o600)
        self._token: str | None = None

    def compose(self, *words: str, timeout_s: float = 600) -> str:
        """What ``docker compose …`` prints."""
        options = ["--project-name", PROJECT, "--file", str(ROOT / "docker-compose.yaml")]
        options += ["--env-file", str(self._file)]
        command = [*self.engine.compose, *options, *words]
        env = {**self.engine.env, **self._env}
        done = subprocess.run(
            command, env=env, cwd=ROOT, capture_output=True, text=True, check=False, timeout=timeout_s
        )
        if done.returncode:
            said = "\n".join([*done.stdout.splitlines()[-30:], *done.stderr.splitlines()[-60:]])
            raise EngineError(f"compose {' '.join(words)} ended with {done.returncode}:\n{said}")
        return done.stdout

    def container(self, service: str) -> str:
        """Id of a service's container."""
        labels = ("com.docker.compose.project", "com.docker.compose.service")
        filters = zip(labels, (PROJECT, service), strict=True)
        words = [word for label, value in filters for word in ("--filter", f"label={label}={value}")]
        found = self.engine.run("ps", "--all", "--quiet", *words).split()
        assert len(found) == 1, f"{service}: {found}"
        return found[0]

    def inspect(self, service: str) -> dict[str, Any]:
        """What the engine says of a service's container."""
        found: list[dict[str, Any]] = json.loads(self.engine.run("inspect", self.container(service)))
        return found[0]

    def health(self, service: str) -> str:
        """``healthy``, or what else the engine says."""
        state = self.inspect(service)["State"]
        return str((state.get("Health") or state.get("Healthcheck") or {}).get("Status"))

    def exec(self, service: str, *words: str) -> str:
        """What a command prints inside a service's container."""
        return self.engine.run("exec", self.container(service), *words)

    def log_in(self) -> None:
        """Take a token with the password that Airflow made."""
        name = "simple_auth_manager_passwords.json.generated"
        passwords = json.loads(self.exec("airflow", "cat", name))
        ((user, password),) = passwords.items()
        self._token = str(
            self.ask("POST", "/auth/token", {"username": user, "password": password})["access_token"]
        )

    def ask(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        """The JSON that Airflow's API answers."""
        headers = {"Content-Type": "application/json"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", data=data, headers=headers, method=method
        )
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
            found: dict[str, Any] = json.load(answer)
        return found

    def trigger(self, dag_id: str, parameters: Mapping[str, Any]) -> str:
        """Press *Trigger* as the form does: unpause, and start a run with what was typed. Returns its id."""
        self.ask("PATCH", f"/api/v2/dags/{dag_id}", {"is_paused": False})
        body = {"conf": dict(parameters), "logical_date": None}
        return str(self.ask("POST", f"/api/v2/dags/{dag_id}/dagRuns", body)["dag_run_id"])

    def wait_for_run(self, dag_id: str, run_id: str) -> str:
        """The state that the run ends in."""
        path = f"/api/v2/dags/{dag_id}/dagRuns/{run_id}"

        def ended() -> str | None:
            time.sleep(1)
            state = str(self.ask("GET", path)["state"])
            return state if state in {"success", "failed"} else None

        return str(wait_for(ended, RUN_S, f"the end of {run_id}"))

    def tasks(self, dag_id: str, run_id: str) -> dict[str, str]:
        """State of each task of a run."""
        found = self.ask("GET", f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances")["task_instances"]
        return {str(task["task_id"]): str(task["state"]) for task in found}

    def log_of(self, dag_id: str, run_id: str, task_id: str) -> str:
        """A task's log, its first attempt."""
        path = f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/logs/1"
        return json.dumps(self.ask("GET", path)["content"])

    def is_healthy(self) -> bool:
        """Whether every part of Airflow says so."""
        try:
            parts = self.ask("GET", "/api/v2/monitor/health")
        except (OSError, ValueError):
            return False
        return all(parts[name]["status"] == "healthy" for name in ("scheduler", "triggerer", "dag_processor"))


@contextlib.contextmanager
def wheels_of_this_machine() -> Iterator[None]:
    """Put torch's wheel, where pip is told of a folder with one, into the build's context meanwhile."""
    copied = []
    try:
        for place in map(Path, os.environ.get("PIP_FIND_LINKS", "").replace("file://", "").split()):
            for wheel in place.glob("torch-*.whl") if place.is_dir() else ():
                if not (WHEELS / wheel.name).exists():
                    copied.append(Path(shutil.copy(wheel, WHEELS)))
        yield
    finally:
        for wheel in copied:
            wheel.unlink()


@contextlib.contextmanager
def running(engine: Engine, images: Mapping[str, str], folder: Path) -> Iterator[Stack]:
    """Build, start, and remove everything afterwards, volumes included."""
    stack = Stack(engine, images, folder)
    # Of the services of one image: podman-compose would build it for each of them at the same time.
    with wheels_of_this_machine():
        stack.compose("build", "airflow", timeout_s=3600)
    with engine.health_checks():
        try:
            stack.compose("up", "--detach", "--no-build", timeout_s=900)
            wait_for(stack.is_healthy, HEALTHY_S, "a healthy Airflow")
            stack.log_in()
            yield stack
        finally:
            stack.compose("down", "--volumes", timeout_s=300)
