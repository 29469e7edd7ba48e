"""``make up`` and ``make down``: a local Airflow with the DAGs loaded, on loopback only.

Four components (API server with the UI, DAG processor, scheduler, triggerer), FastChat's controller and an
arcadia-config with one Ray cluster, whose head a run of the DAG starts. Each is a process group of its own,
written down in ``var/up`` before the next one starts, so that ``down`` ends them all whatever happened.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import secrets
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import requests

from airflow_arcadia.lease_store import LeaseStore
from airflow_arcadia.processes import ProcessRef, end, is_alive, mark, spawn
from demo import local

START_TIMEOUT_S = 180.0
_POLL_S = 0.5
# Log servers would listen on every address; here the UI reads the log files themselves.
COMPONENTS = {
    "api-server": ("api-server",),
    "dag-processor": ("dag-processor",),
    "scheduler": ("scheduler", "--skip-serve-logs"),
    "triggerer": ("triggerer", "--skip-serve-logs"),
}


@dataclass(frozen=True)
class Ports:
    """Where things listen, all on 127.0.0.1."""

    airflow: int
    controller: int
    gcs: int
    dashboard: int


class Stack:
    """The running stack of one checkout.

    :param folder: for its records, logs, leases and Airflow's home.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = LeaseStore(folder / "state")
        self._record = folder / "stack.json"
        # Another checkout's stack has another mark.
        self._owner = f"up-{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:10]}"

    def up(self, port: int) -> Ports:
        """Start what does not run and wait until Airflow is healthy. Raises :class:`local.LocalError`."""
        with self._locked():
            running = self._read()
            if running and all(is_alive(ref) for ref in running[1].values()):
                say("it is up already")
                return running[0]
            self._end()
            ports = Ports(_airflow_port(port), *local.free_ports(3))
            processes: dict[str, ProcessRef] = {}
            connection = self._connection(ports)
            env = self._environment(ports)
            local.migrate(env, self.folder / "migrate.log")
            local.store_connection(connection, env, self.folder / "migrate.log")
            log = self.folder / "controller.log"
            processes["controller"] = local.start_controller(ports.controller, self._owner, log)
            self._write(ports, processes)
            for name, words in COMPONENTS.items():
                processes[name] = spawn(
                    [str(local.AIRFLOW), *words],
                    env=env | mark(self._owner, f"service/{name}"),
                    log_path=self.folder / f"{name}.log",
                )
                self._write(ports, processes)
            self._wait(ports, processes)
            return ports

    def down(self) -> list[str]:
        """End everything, runs and their workers included; returns what cannot be ended."""
        if not self.folder.exists():
            return []
        with self._locked():
            return self._end()

    def _end(self) -> list[str]:
        record = self._read()
        left: list[str] = []
        # Airflow first: its scheduler would start the next task of a run whose worker is being ended.
        for name, ref in sorted((record[1] if record else {}).items()):
            left += end(ref, self._owner, f"service/{name}", grace_s=10)
        left += end(None, self._owner, grace_s=0)
        left += local.end_leases(self.store)
        if not left:
            self._record.unlink(missing_ok=True)
        return left

    def _connection(self, ports: Ports) -> dict[str, Any]:
        config = self.folder / "arcadia-config.yaml"
        local.write_arcadia_config(
            config, controller=ports.controller, gcs=ports.gcs, dashboard=ports.dashboard
        )
        return local.arcadia_connection(config, self.store.root)

    def _environment(self, ports: Ports) -> dict[str, str]:
        url = f"http://127.0.0.1:{ports.airflow}"
        answers = self.folder / "answers"
        answers.mkdir(parents=True, exist_ok=True)
        return local.airflow_environment(self.folder / "airflow") | {
            "AIRFLOW__API__HOST": "127.0.0.1",
            "AIRFLOW__API__PORT": str(ports.airflow),
            "AIRFLOW__API__BASE_URL": url,
            "AIRFLOW__API__WORKERS": "1",
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{url}/execution/",
            "AIRFLOW__CORE__PARALLELISM": "4",
            # The Test button of the connection form: off by default since it runs on the API server.
            "AIRFLOW__CORE__TEST_CONNECTION": "Enabled",
            # One person on loopback: no login. Tokens are still signed, with keys of this start alone.
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
            "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_hex(32),
            "AIRFLOW__API__SECRET_KEY": secrets.token_hex(32),
            "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.1",
            "AIRFLOW__TRIGGERER__JOB_HEARTBEAT_SEC": "1",
            "ARCADIA_MODEL": str(local.MODEL),
            "ARCADIA_NUM_GPUS": str(local.NUM_GPUS),
            "ARCADIA_INPUT": str(local.PROMPTS),
            "ARCADIA_OUTPUT": str(answers / "%Y-%m-%d-%H%M%S.jsonl"),
            "ARCADIA_MAX_MODEL_LEN": "1024",
            "ARCADIA_EXTRA_ARGS": local.EXTRA_ARGS,
        }

    def _wait(self, ports: Ports, processes: dict[str, ProcessRef]) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not (local.controller_answers(ports.controller) and _healthy(ports.airflow)):
            for name, ref in processes.items():
                if not is_alive(ref):
                    raise local.LocalError(f"{name} ended while starting; see {self.folder / name}.log")
            if time.monotonic() > deadline:
                raise local.LocalError(f"Airflow was not healthy in time; see the logs in {self.folder}")
            time.sleep(_POLL_S)

    def _read(self) -> tuple[Ports, dict[str, ProcessRef]] | None:
        try:
            raw = json.loads(self._record.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return Ports(**raw["ports"]), {name: ProcessRef(**ref) for name, ref in raw["processes"].items()}

    def _write(self, ports: Ports, processes: dict[str, ProcessRef]) -> None:
        raw = {"ports": asdict(ports), "processes": {name: asdict(ref) for name, ref in processes.items()}}
        draft = self._record.with_suffix(".tmp")
        draft.write_text(json.dumps(raw), encoding="utf-8")
        draft.replace(self._record)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _airflow_port(wanted: int) -> int:
    """``wanted`` if it is free, else another: a second checkout may be up."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError:
            return local.free_ports(1)[0]
    return wanted


def _healthy(port: int) -> bool:
    try:
        health = requests.get(f"http://127.0.0.1:{port}/api/v2/monitor/health", timeout=5).json()
    except (requests.RequestException, ValueError):
        return False
    return all(
        health.get(part, {}).get("status") == "healthy"
        for part in ("scheduler", "triggerer", "dag_processor")
    )


def say(text: str) -> None:
    """One line of progress."""
    print(f"up: {text}", flush=True)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m demo.stack", description=__doc__)
    parser.add_argument("command", choices=["up", "down"])
    parser.add_argument("--folder", type=Path, default=local.ROOT / "var" / "up")
    parser.add_argument("--port", type=int, default=8080, help="of Airflow's UI; another one if it is taken")
    options = parser.parse_args()
    stack = Stack(options.folder)
    if options.command == "down":
        left = stack.down()
        for text in left:
            print(f"down: cannot be ended: {text}", file=sys.stderr)
        if not left:
            print("down: nothing is running")
        return 1 if left else 0
    say("starting Airflow, about half a minute …")
    try:
        ports = stack.up(options.port)
    except (local.LocalError, KeyboardInterrupt) as error:
        stack.down()
        print(f"up: {error or 'interrupted'}; what was started was ended", file=sys.stderr)
        return 1
    say(f"Airflow is at http://127.0.0.1:{ports.airflow} (no login)")
    say(f"by hand: http://127.0.0.1:{ports.airflow}/dags/{local.DAG_ID}, Trigger, and fill the form")
    say(f"the connection it uses: http://127.0.0.1:{ports.airflow}/connections, arcadia_default")
    say(f"answers will be in {options.folder / 'answers'}, logs in {options.folder}; end it with: make down")
    return 0


if __name__ == "__main__":
    sys.exit(main())
