"""The built wheel in an environment of its own, as its users have it, with nothing of the checkout."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PARSE_MINIMAL_DAG = """
import airflow_arcadia
from airflow_arcadia.example_dags import arcadia_minimal

assert "site-packages" in airflow_arcadia.__file__, airflow_arcadia.__file__
dag = arcadia_minimal.worker.dag
print(" ".join(sorted(task.task_id for task in dag.tasks)))
"""


def uv_and_environment() -> tuple[str, dict[str, str]]:
    """The set-up's uv, and the environment that it runs it in."""
    spec = importlib.util.spec_from_file_location("environments", ROOT / "scripts" / "environments.py")
    assert spec is not None
    assert spec.loader is not None
    setup = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(setup)
    env = setup.tool_environment(os.environ)
    return setup.find_uv(sys.executable, env), env


pytestmark = pytest.mark.airflow


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the source distribution."""
    folder = tmp_path_factory.mktemp("dist")
    uv, env = uv_and_environment()
    command = [uv, "build", "--quiet", "--out-dir", str(folder), "--python", sys.executable, str(ROOT)]
    subprocess.run(command, env=env, check=True, cwd=folder)
    return folder


def test_the_wheel_alone_lists_the_provider_and_imports_the_minimal_dag(built: Path, tmp_path: Path):
    uv, env = uv_and_environment()
    env |= {"AIRFLOW_HOME": str(tmp_path / "airflow"), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
    env.pop("PYTHONPATH", None)
    venv = tmp_path / "venv"

    def run(*words: str) -> str:
        # Beside no checkout: Python puts the working folder on the path.
        done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    (wheel,) = built.glob("*.whl")
    run(uv, "venv", "--quiet", "--python", sys.executable, str(venv))
    constraints = str(ROOT / "requirements" / "airflow.txt")
    run(uv, "pip", "install", "--quiet", "--python", str(venv), "--constraint", constraints, str(wheel))

    listed = run(str(venv / "bin" / "airflow"), "providers", "list", "--output", "plain")
    assert "airflow-provider-arcadia" in listed
    tasks = run(str(venv / "bin" / "python"), "-c", PARSE_MINIMAL_DAG).split()
    assert {"qwen.reserve", "qwen.launch_worker", "qwen.answer", "qwen.teardown_worker"} <= set(tasks)


def test_the_wheel_has_all_that_the_package_needs_and_nothing_else(built: Path):
    (path,) = built.glob("*.whl")
    with zipfile.ZipFile(path) as wheel:
        names = set(wheel.namelist())
        (metadata,) = (wheel.read(name) for name in names if name.endswith(".dist-info/METADATA"))
    package = {
        str(found.relative_to(ROOT))
        for found in (ROOT / "airflow_arcadia").rglob("*")
        if found.is_file() and "__pycache__" not in found.parts
    }
    examples = {f"airflow_arcadia/example_dags/{found.name}" for found in (ROOT / "dags").glob("*.py")}
    shipped = {name for name in names if ".dist-info/" not in name}
    assert shipped == package | examples
    assert "airflow_arcadia/py.typed" in shipped
    assert any(name.endswith("licenses/LICENSE") for name in names)
    told = message_from_bytes(metadata)
    assert told["Requires-Python"] == ">=3.11"
    assert {"parquet", "s3", "worker"} <= set(told.get_all("Provides-Extra") or [])
    assert {"Homepage", "Source", "Documentation"} == {
        str(url).partition(",")[0] for url in told.get_all("Project-URL") or []
    }


def test_the_source_distribution_has_what_it_takes_to_test_and_to_document_it(built: Path):
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as source:
        names = {name.partition("/")[2] for name in source.getnames()}
    wanted = {
        "Makefile",
        "ARCHITECTURE.md",
        "deploy/rbac.yaml",
        "docker/Dockerfile.worker",
        "tests/conftest.py",
    }
    wanted |= {str(found.relative_to(ROOT)) for found in (ROOT / "docs").rglob("*.md")}
    wanted |= {str(found.relative_to(ROOT)) for found in (ROOT / "requirements").iterdir()}
    assert wanted - names == set()
