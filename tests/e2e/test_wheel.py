"""The built wheel in an environment of its own, as its users have it, with nothing of the checkout."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
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


@pytest.mark.airflow
def test_the_wheel_alone_lists_the_provider_and_imports_the_minimal_dag(tmp_path: Path):
    uv, env = uv_and_environment()
    env |= {"AIRFLOW_HOME": str(tmp_path / "airflow"), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
    env.pop("PYTHONPATH", None)
    venv = tmp_path / "venv"

    def run(*words: str) -> str:
        # Beside no checkout: Python puts the working folder on the path.
        done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run(uv, "build", "--quiet", "--wheel", "--out-dir", str(tmp_path), "--python", sys.executable, str(ROOT))
    (wheel,) = tmp_path.glob("*.whl")
    run(uv, "venv", "--quiet", "--python", sys.executable, str(venv))
    constraints = str(ROOT / "requirements" / "airflow.txt")
    run(uv, "pip", "install", "--quiet", "--python", str(venv), "--constraint", constraints, str(wheel))

    listed = run(str(venv / "bin" / "airflow"), "providers", "list", "--output", "plain")
    assert "airflow-provider-arcadia" in listed
    tasks = run(str(venv / "bin" / "python"), "-c", PARSE_MINIMAL_DAG).split()
    assert {"qwen.reserve", "qwen.launch_worker", "qwen.answer", "qwen.teardown_worker"} <= set(tasks)
