"""What the demo and the local stack share: where things are, the connection, the controller, Airflow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import requests
import yaml

from airflow_arcadia.launchers.process import ProcessLauncher
from airflow_arcadia.launchers.teardown import teardown
from airflow_arcadia.lease_store import LeaseStore
from airflow_arcadia.ports import free_port
from airflow_arcadia.processes import ProcessRef, is_alive, mark, spawn, tail

ROOT = Path(__file__).resolve().parents[1]
AIRFLOW = Path(sys.executable).with_name("airflow")
WORKER_PYTHON = ROOT / ".venv-worker" / "bin" / "python"
MODEL = ROOT / "var" / "models" / "SmolLM2-135M-Instruct"
PROMPTS = ROOT / "demo" / "prompts.jsonl"
DAG_ID = "arcadia_batch_inference"
NUM_GPUS = 2
# What makes an engine small enough for a laptop: no compilation, and 512 MiB of KV cache a rank.
EXTRA_ARGS = "--enforce-eager --kv-cache-memory-bytes 536870912"

_POLL_S = 0.1
_CONTROLLER_TIMEOUT_S = 60.0
_GRACE_S = 15.0


class LocalError(Exception):
    """What could not be started here, and what its log says."""


def free_ports(number: int) -> list[int]:
    """Different ports of this machine's loopback address that nothing listens on now."""
    ports: set[int] = set()
    while len(ports) < number:
        ports.add(free_port())
    return list(ports)


def write_arcadia_config(path: Path, *, controller: int, gcs: int, dashboard: int) -> None:
    """arcadia-config of this machine: a gateway and one Ray cluster, all on loopback (ports given)."""
    cluster = {
        "name": "local",
        "headAddress": f"127.0.0.1:{gcs}",
        "dashboardHost": f"127.0.0.1:{dashboard}",
    }
    config = {"gateway": {"controller": f"http://127.0.0.1:{controller}"}, "rayClusters": [cluster]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")


def arcadia_connection(arcadia_config: Path, state_dir: Path) -> dict[str, Any]:
    """The connection ``arcadia_default`` of this machine, in Airflow's JSON form."""
    extra = {
        "arcadia_config": str(arcadia_config),
        "worker_python": str(WORKER_PYTHON),
        "state_dir": str(state_dir),
    }
    # Airflow 3.3.1 and 3.3.2 refuse to test a connection that has no port: their UI sends 0 for none.
    return {"conn_type": "arcadia", "port": 0, "extra": extra}


def airflow_environment(home: Path) -> dict[str, str]:
    """Environment of every Airflow process here: its home and this checkout's DAGs."""
    # Settings of another Airflow of this user have no say here.
    env = {key: value for key, value in os.environ.items() if not key.startswith(("AIRFLOW", "ARCADIA_"))}
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    return env | {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "PATH": f"{AIRFLOW.parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "PYTHONUNBUFFERED": "1",
    }


def migrate(env: Mapping[str, str], log: Path) -> None:
    """Make or update Airflow's database. Raises :class:`LocalError`."""
    Path(env["AIRFLOW_HOME"]).mkdir(parents=True, exist_ok=True)
    _run_airflow(["db", "migrate"], env, log)


def store_connection(connection: Mapping[str, Any], env: Mapping[str, str], log: Path) -> None:
    """Write ``arcadia_default`` into Airflow's database, where its UI shows it.

    Raises :class:`LocalError`.
    """
    file = Path(env["AIRFLOW_HOME"]) / "connections.json"
    file.write_text(json.dumps({"arcadia_default": connection}), encoding="utf-8")
    _run_airflow(["connections", "import", "--overwrite", str(file)], env, log)


def _run_airflow(words: list[str], env: Mapping[str, str], log: Path) -> None:
    with log.open("ab") as output:
        done = subprocess.run(
            [AIRFLOW, *words],
            check=False,
            env=env,
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
        )
    if done.returncode:
        raise LocalError(f"airflow {' '.join(words[:2])} failed:\n" + "\n".join(tail(log)))


def start_controller(port: int, owner: str, log: Path) -> ProcessRef:
    """FastChat's controller, unmodified, marked with ``owner``; :func:`controller_answers` tells when."""
    argv = [str(WORKER_PYTHON), "-m", "fastchat.serve.controller", "--host", "127.0.0.1", "--port", str(port)]
    env = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    # It writes controller.log into its working directory.
    env |= {"LOGDIR": str(log.parent), **mark(owner, "service/controller")}
    log.parent.mkdir(parents=True, exist_ok=True)
    return spawn(argv, env=env, log_path=log, cwd=log.parent)


def wait_for(
    what: str, condition: Callable[[], Any], process: ProcessRef, log: Path, timeout_s: float
) -> None:
    """Until ``condition`` holds. Raises :class:`LocalError` when the process ends or takes too long."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if not is_alive(process) or time.monotonic() > deadline:
            how = "took too long" if is_alive(process) else "ended while starting"
            raise LocalError(f"{what} {how}; its log {log} ends:\n" + "\n".join(tail(log)))
        time.sleep(_POLL_S)


def controller_answers(port: int) -> bool:
    """Whether FastChat's controller listens there."""
    try:
        return requests.get(f"http://127.0.0.1:{port}/test_connection", timeout=2).ok
    except requests.RequestException:
        return False


def wait_for_controller(port: int, process: ProcessRef, log: Path) -> None:
    """Until the controller answers. Raises :class:`LocalError`."""
    wait_for("FastChat's controller", lambda: controller_answers(port), process, log, _CONTROLLER_TIMEOUT_S)


def controller_models(port: int) -> list[str]:
    """What is registered with the controller; ``/refresh_all_workers`` would empty its list first."""
    try:
        answer = requests.post(f"http://127.0.0.1:{port}/list_models", timeout=2)
        return list(answer.json()["models"])
    except (requests.RequestException, ValueError, KeyError):
        return []


def end_leases(store: LeaseStore) -> list[str]:
    """End whatever runs left under the leases there; returns what cannot be ended."""
    launchers = {ProcessLauncher.name: ProcessLauncher(store, str(WORKER_PYTHON))}
    return [text for name in store.names() for text in teardown(store, name, launchers, grace_s=_GRACE_S)]
