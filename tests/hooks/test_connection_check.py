"""The *Test* button of the connection form: what it finds, and that it finds what is wrong."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_arcadia import get_provider_info
from airflow_arcadia.hooks.arcadia import ArcadiaHook
from airflow_arcadia.ports import free_port
from tests.airflow_context import set_connection
from tests.fake_ray_dashboard import ray_dashboard


@pytest.fixture
def dashboard() -> Iterator[str]:
    """Address of a dashboard."""
    with ray_dashboard() as server:
        yield f"127.0.0.1:{server.server_port}"


@pytest.fixture
def worker_python_path(tmp_path: Path) -> str:
    """A program that tells versions as a worker's Python does."""
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho 2.60.0 3.11.7\n")
    program.chmod(0o755)
    return str(program)


def config(address: str, **cluster: str) -> str:
    """arcadia-config with one Ray cluster."""
    entry = {"name": "two-gpus", "headAddress": "127.0.0.1:6379", "dashboardHost": address, **cluster}
    return json.dumps({"rayClusters": [entry]})


def test_a_right_connection_says_what_was_found(monkeypatch, tmp_path, dashboard, worker_python_path):
    set_connection(
        monkeypatch,
        arcadia_config_yaml=config(dashboard, pythonVersion="3.11.7"),
        worker_python=worker_python_path,
        state_dir=str(tmp_path / "state"),
    )
    ok, message = ArcadiaHook().test_connection()
    assert ok, message
    assert "Ray cluster two-gpus answers: Ray 2.60.0, Python 3.11.7, 2 of 2 GPUs free." in message
    assert f"The worker's Python {worker_python_path} has Ray 2.60.0, Python 3.11.7." in message


def test_a_cluster_that_runs_another_python_than_stated_is_named(
    monkeypatch, tmp_path, dashboard, worker_python_path
):
    set_connection(
        monkeypatch,
        arcadia_config_yaml=config(dashboard, pythonVersion="3.10.1"),
        worker_python=worker_python_path,
        state_dir=str(tmp_path),
    )
    ok, message = ArcadiaHook().test_connection()
    assert not ok
    assert message.startswith(
        "arcadia-config states for Ray cluster two-gpus pythonVersion 3.10.1, but it runs 3.11.7."
    )


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({"arcadia_config": "/nope/arcadia-config.yaml"}, "/nope/arcadia-config.yaml"),
        ({"arcadia_config_yaml": "rayClusters: 5"}, "rayClusters"),
        ({"arcadia_config_yaml": "a: b: c"}, "not valid YAML"),
        ({}, "says nothing about arcadia-config"),
        ({"arcadia_config_yaml": "{}", "worker_python": "/nope/python"}, "/nope/python"),
        ({"arcadia_config_yaml": "{}", "worker_python": sys.executable}, "cannot tell its Ray version"),
        ({"arcadia_config_yaml": "{}", "state_dir": "/dev/null/state"}, "/dev/null is not a folder"),
    ],
)
def test_a_wrong_field_is_named(monkeypatch, tmp_path, worker_python_path, extra, said):
    set_connection(monkeypatch, **{"worker_python": worker_python_path, "state_dir": str(tmp_path), **extra})
    ok, message = ArcadiaHook().test_connection()
    assert not ok
    assert said in message


def test_a_loopback_cluster_that_is_not_running_is_no_fault_but_another_is(
    monkeypatch, tmp_path, worker_python_path
):
    fields = {"worker_python": worker_python_path, "state_dir": str(tmp_path)}
    set_connection(monkeypatch, arcadia_config_yaml=config(f"127.0.0.1:{free_port()}"), **fields)
    assert ArcadiaHook().test_connection()[0]
    elsewhere = config(f"127.0.0.1:{free_port()}", headAddress="ray.example.invalid:6379")
    set_connection(monkeypatch, arcadia_config_yaml=elsewhere, **fields)
    ok, message = ArcadiaHook().test_connection()
    assert not ok
    assert "two-gpus" in message or "No Ray dashboard" in message


def test_the_form_keeps_the_lines_of_the_yaml_and_hides_the_tokens():
    (connection,) = get_provider_info()["connection-types"]
    fields = connection["conn-fields"]
    assert fields["arcadia_config_yaml"]["schema"]["format"] == "multiline"
    assert {name for name, field in fields.items() if field["schema"].get("format") == "password"} == {
        "ray_token",
        "hf_token",
    }
    assert all(field["description"] for field in fields.values())
