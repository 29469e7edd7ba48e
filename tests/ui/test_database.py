"""What the page reads from Airflow's own database and changes there, on a new database of this Airflow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from airflow_arcadia.operators._failed_rows import CONF_KEY
from tests.conftest import ROOT

pytestmark = pytest.mark.airflow  # a database, and every task of a DAG in one process

SCRIPT = Path(__file__).with_name("database_script.py")


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the script found."""
    home = tmp_path_factory.mktemp("airflow")
    env = {key: value for key, value in os.environ.items() if not key.startswith("AIRFLOW")} | {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGS_FOLDER": str(SCRIPT.parent),
        "PYTHONPATH": str(ROOT),
        "_AIRFLOW_PROCESS_CONTEXT": "server",
    }
    airflow = str(Path(sys.executable).with_name("airflow"))
    subprocess.run([airflow, "db", "migrate"], env=env, check=True, capture_output=True)
    done = subprocess.run([sys.executable, str(SCRIPT)], env=env, capture_output=True, text=True, check=False)
    lines = [line for line in done.stderr.splitlines() if line.startswith("TOLD ")]
    assert lines, done.stdout[-3000:] + done.stderr[-3000:]
    found: dict[str, Any] = json.loads(lines[-1].removeprefix("TOLD "))
    return found


def test_a_batch_is_read_with_its_summary_and_its_progress(told: dict[str, Any]):
    batch = told["batch"]
    assert (batch["state"], batch["summary"]["completion_id"]) == ("success", "abc")
    assert batch["history"] == [[1.0, 2, 3.0, 4.0]]
    assert batch["progress"]["failed"] == 2
    assert told["handle"]["name"] == "w"
    assert told["input"] == "in-2026-02-03.jsonl"


def test_a_retry_clears_the_batch_its_worker_and_what_depends_on_the_answers(told: dict[str, Any]):
    assert told["said"].startswith("2 failed rows are answered again: 5 tasks")
    assert told["state"] == "queued"
    assert told["conf"] == {"limit": 9, CONF_KEY: {"answer": "abc"}}
    assert {task for task, state in told["states"].items() if state is not None} == {"prepare"}


def test_a_running_batch_is_marked_failed_once(told: dict[str, Any]):
    assert told["marked"] == [True, False]
    assert told["answer"] == "failed"


def test_what_a_person_did_is_in_the_audit_log(told: dict[str, Any]):
    assert told["log"] == ["ada", "why", "dag"]
