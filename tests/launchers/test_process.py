"""The process launcher: its port, and what of Airflow's environment its workers get."""

from __future__ import annotations

import errno
import socket
from pathlib import Path

import pytest

from airflow_arcadia.config import RayCluster
from airflow_arcadia.exceptions import WorkerError
from airflow_arcadia.kubernetes.pod_template import HF_TOKEN
from airflow_arcadia.launchers import process
from airflow_arcadia.launchers.process import ProcessLauncher
from airflow_arcadia.lease import Lease
from airflow_arcadia.lease_store import LeaseStore
from airflow_arcadia.ports import require_free
from airflow_arcadia.ray_cluster.local import start_head
from airflow_arcadia.worker import WorkerSpec
from tests.conftest import wait_for


def test_a_port_that_a_process_listens_on_is_refused_at_once_and_its_holder_named():
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        pytest.raises(WorkerError, match="held by process"),
    ):
        process._free_port("127.0.0.1", server.getsockname()[1])


def test_a_port_that_a_killed_worker_still_holds_is_waited_for(monkeypatch: pytest.MonkeyPatch):
    answers = [OSError(errno.EADDRINUSE, "in use"), OSError(errno.EADDRINUSE, "in use"), None]

    def look(host: str, port: int) -> int:
        if error := answers.pop(0):
            raise error
        return require_free(host, port)

    monkeypatch.setattr(process, "require_free", look)
    monkeypatch.setattr(process, "_PORT_POLL_S", 0.0)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert process._free_port("127.0.0.1", port) == port
    assert answers == []


def test_an_address_of_another_machine_is_refused_at_once():
    with pytest.raises(WorkerError, match=r"cannot listen on 192\.0\.2\.1"):
        process._free_port("192.0.2.1", 21002)


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """In place of the worker's Python: writes down its environment and command line."""
    script = tmp_path / "python"
    script.write_text(
        f'#!/bin/sh\n{{ env; echo "$@"; }} > {tmp_path}/draft; mv {tmp_path}/draft {tmp_path}/told\n'
    )
    script.chmod(0o755)
    return script


def told(python: Path) -> str:
    """What it wrote down."""
    file = python.with_name("told")
    wait_for(file.exists, 10, "the process")
    return file.read_text()


@pytest.mark.parametrize("of_connection", [True, False], ids=["the connection's", "Airflow's environment's"])
def test_hugging_faces_token_reaches_a_worker_as_a_file(
    store: LeaseStore, lease: Lease, python: Path, monkeypatch: pytest.MonkeyPatch, of_connection: bool
):
    monkeypatch.setenv("HF_TOKEN", "hf_of_airflow")
    token = "hf_of_connection" if of_connection else "hf_of_airflow"
    launcher = ProcessLauncher(store, str(python), secrets={HF_TOKEN: token} if of_connection else {})
    launcher.launch(WorkerSpec(name="w", model="m"), lease, ray=None)
    seen = told(python)
    assert "hf_of" not in seen
    path = Path(
        next(line for line in seen.splitlines() if line.startswith("HF_TOKEN_PATH=")).partition("=")[2]
    )
    assert (path.read_text(), path.stat().st_mode & 0o777) == (token, 0o600)


def test_a_local_ray_head_gets_neither_a_token_nor_a_proxys_password(
    store: LeaseStore, lease: Lease, python: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HF_TOKEN", "the-secret")
    monkeypatch.setenv("HTTPS_PROXY", "http://user:the-secret@proxy:3128")
    cluster = RayCluster("local", "127.0.0.1:6379", dashboard_host="http://127.0.0.1:8265")
    options = {"num_gpus": 1, "num_cpus": None, "ray_token_file": None}
    start_head(cluster, lease.name, store=store, worker_python=str(python), **options)
    seen = told(python)
    assert "--head" in seen
    assert "the-secret" not in seen
