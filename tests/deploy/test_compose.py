"""docker-compose.yaml: what an engine would read of it."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
import yaml

from airflow_arcadia.config import ArcadiaConfig
from tests.conftest import ROOT

FILE = ROOT / "docker-compose.yaml"


@pytest.fixture(scope="module")
def secrets() -> dict[str, str]:
    lines = subprocess.check_output([str(ROOT / "docker" / "make-env")], text=True).splitlines()
    return dict(line.split("=", 1) for line in lines)


@pytest.fixture(scope="module")
def stack(secrets: dict[str, str]) -> dict[str, Any]:
    """The file with variables put in, as ``docker compose config`` does."""

    def value(found: re.Match[str]) -> str:
        name, operator, word = found[1], found[2], found[3]
        if name in secrets:
            return secrets[name]
        assert operator == ":-", f"{name} has no default and docker/make-env does not make it"
        return word

    text = re.sub(r"\$\{(\w+)(?:(:[-?])([^}]*))?\}", value, FILE.read_text())
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded


def test_every_secret_must_be_given_and_none_has_a_default():
    named = dict(re.findall(r"\$\{(\w*(?:PASSWORD|KEY|SECRET)\w*)(:[-?])?", FILE.read_text()))
    assert named
    assert all(operator in {":?", ""} for operator in named.values())
    assert ".env" in (ROOT / ".gitignore").read_text()


@pytest.mark.parametrize(
    ("scheduler", "says"), [("healthy", ""), (None, ""), ("unhealthy", "scheduler")], ids=str
)
def test_airflow_is_healthy_when_all_of_it_is_and_else_says_what_is_not(
    stack: dict[str, Any], scheduler: str | None, says: str
):
    health = json.dumps({"metadatabase": {"status": "healthy"}, "scheduler": {"status": scheduler}})
    command = stack["services"]["airflow"]["healthcheck"]["test"]
    assert command[:3] == ["CMD", "python", "-c"]
    with answering(health) as url:
        code = command[3].replace("http://127.0.0.1:8080", url)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (int(bool(says)), says)


@contextlib.contextmanager
def answering(body: str) -> Iterator[str]:
    """URL of a server that answers every GET with the body."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body.encode())

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_nothing_listens_but_on_loopback(stack: dict[str, Any]):
    published = [port for service in stack["services"].values() for port in service.get("ports", ())]
    assert set(published) == {"127.0.0.1:8080:8080"}
    assert not [name for name, s in stack["services"].items() if s.get("network_mode") == "host"]


def test_what_a_service_names_is_in_the_file(stack: dict[str, Any]):
    services, volumes = stack["services"], stack["volumes"]
    for service in services.values():
        assert set(service.get("depends_on", ())) <= set(services)
        for source in (volume.split(":")[0] for volume in service.get("volumes", ())):
            assert (ROOT / source).is_dir() if source.startswith(".") else source in volumes
        if build := service.get("build"):
            assert f"AS {build['target']}\n" in (ROOT / build["dockerfile"]).read_text()
        if service.get("network_mode", "").startswith("service:"):
            assert service["network_mode"].removeprefix("service:") in services


def test_the_connection_is_one_that_the_hook_reads(stack: dict[str, Any], secrets: dict[str, str]):
    environment = stack["services"]["airflow"]["environment"]
    assert all(isinstance(value, str) for value in environment.values())
    connection = json.loads(environment["AIRFLOW_CONN_ARCADIA_DEFAULT"])
    assert connection["password"] == secrets["ARCADIA_API_KEY"]
    config = ArcadiaConfig.from_yaml(connection["extra"]["arcadia_config_yaml"])
    assert config.ray_clusters[0].is_loopback
    command = stack["services"]["controller"]["entrypoint"]
    assert config.gateway.controller == f"http://127.0.0.1:{command[-1]}"


def test_what_a_run_leaves_outlives_the_containers(stack: dict[str, Any]):
    mounted = {volume.split(":")[1] for volume in stack["services"]["airflow"]["volumes"]}
    assert {"/answers", "/state", "/models", "/opt/airflow/logs"} <= mounted


def test_the_gpu_profile_differs_in_the_engine_and_the_devices_alone(stack: dict[str, Any]):
    services = stack["services"]
    assert {name for name, s in services.items() if "profiles" in s} == {"airflow-gpu", "controller-gpu"}
    plain, gpu = services["airflow"], services["airflow-gpu"]
    (device,) = gpu["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    assert gpu["build"]["args"]["WORKER_LOCK"] == "requirements/worker-cuda.txt"
    assert (ROOT / gpu["build"]["args"]["WORKER_LOCK"]).exists()
    changed = {"build", "deploy", "environment", "image", "profiles"}
    assert {key: value for key, value in gpu.items() if key not in changed} == {
        key: value for key, value in plain.items() if key not in changed
    }
    assert services["controller-gpu"]["network_mode"] == "service:airflow-gpu"


def test_services_that_are_waited_for_have_a_health_check(stack: dict[str, Any]):
    for name in ("postgres", "airflow", "controller"):
        assert stack["services"][name]["healthcheck"]["test"][0] == "CMD"
    waits = stack["services"]["airflow"]["depends_on"]
    assert waits["postgres"] == {"condition": "service_healthy"}


def test_no_service_of_ours_has_a_capability_or_can_gain_privileges(stack: dict[str, Any]):
    for name, service in stack["services"].items():
        if name != "postgres":
            assert service["cap_drop"] == ["ALL"]
            assert service["security_opt"] == ["no-new-privileges:true"]


def test_base_images_and_indexes_can_be_a_mirrors(stack: dict[str, Any]):
    text = FILE.read_text()
    assert "${POSTGRES_IMAGE:-" in text
    arguments = stack["services"]["airflow"]["build"]["args"]
    recipe = (ROOT / "docker" / "Dockerfile.airflow").read_text()
    for name in arguments:
        assert re.search(rf"^ARG {name}\b", recipe, re.MULTILINE)
