"""A DAG that is scheduled on a batch's asset runs, on a whole Airflow with a stand-in for vLLM's server."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_arcadia.lease_store import LeaseStore
from airflow_arcadia.ports import free_port
from tests.conftest import ROOT
from tests.e2e.scheduled_airflow import ScheduledAirflow, scheduled_airflow

pytestmark = [pytest.mark.airflow, pytest.mark.timeout(600)]

REPORT = "arcadia_answers_report"
RUN_TIMEOUT_S = 180.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Inputs and outputs."""
    folder = tmp_path_factory.mktemp("assets")
    for name, rows in (("a", 3), ("b", 5)):
        lines = [json.dumps({"prompt": f"number {i}"}) for i in range(rows)]
        (folder / f"in-{name}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def airflow(folder: Path) -> Iterator[ScheduledAirflow]:
    """An Airflow with the shipped DAGs and one whose batches are mapped."""
    dags = folder / "dags"
    dags.mkdir()
    for path in ("dags/arcadia_batch_inference.py", f"dags/{REPORT}.py", "tests/e2e/dags/mapped_batches.py"):
        shutil.copy(ROOT / path, dags)
    python = folder / "worker-python"
    stand_in = ROOT / "tests" / "lifecycle" / "stand_in"
    python.write_text(f'#!/bin/sh\nexport PYTHONPATH={stand_in}:{ROOT}\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    extra = {
        "arcadia_config_yaml": "rayClusters: []",
        "worker_python": str(python),
        "state_dir": str(LeaseStore(folder / "state").root),
    }
    env = {
        "AIRFLOW_CONN_ARCADIA_DEFAULT": json.dumps({"conn_type": "arcadia", "extra": extra}),
        "E2E_FOLDER": str(folder),
        "PYTHONPATH": str(ROOT),
    }
    with scheduled_airflow(folder / "airflow", dags, free_port(), env) as airflow:
        airflow.wait_for(lambda: airflow.dag_exists(REPORT), 90, f"{REPORT} to be parsed")
        airflow.request("PATCH", f"/dags/{REPORT}", json={"is_paused": False})
        yield airflow


def reported(airflow: ScheduledAirflow, known: set[str]) -> list[dict[str, Any]]:
    """What the runs of the downstream DAG that are not ``known`` have returned, once they succeeded."""
    told = []
    for run in airflow.request("GET", f"/dags/{REPORT}/dagRuns")["dag_runs"]:
        if run["dag_run_id"] in known or run["state"] != "success":
            continue
        path = f"/dags/{REPORT}/dagRuns/{run['dag_run_id']}/taskInstances/report/xcomEntries/return_value"
        value = airflow.request("GET", path)["value"]
        told += json.loads(value) if isinstance(value, str) else value
    return told


def report_runs(airflow: ScheduledAirflow) -> set[str]:
    return {run["dag_run_id"] for run in airflow.request("GET", f"/dags/{REPORT}/dagRuns")["dag_runs"]}


def test_a_dag_scheduled_on_the_answers_runs_after_a_batch_and_learns_what_was_written(
    airflow: ScheduledAirflow, folder: Path
):
    known, output = report_runs(airflow), folder / "answers.jsonl"
    conf = {
        "model": "org/stand-in",
        "num_gpus": 1,
        "input": str(folder / "in-a.jsonl"),
        "output": str(output),
    }
    run_id = airflow.trigger("arcadia_batch_inference", {**conf, "limit": 2})
    state = airflow.wait_for_run("arcadia_batch_inference", run_id, RUN_TIMEOUT_S)
    assert state == "success", airflow.log("arcadia_batch_inference", run_id, "worker.answer")
    (told,) = airflow.wait_for(lambda: reported(airflow, known), 90, f"{REPORT} to run")
    assert (told["output"], told["rows"], told["ok"], told["failed"]) == (str(output), 2, 2, 0)
    assert told["partial"], "the input has more rows than the limit"
    assert told["completion_tokens"] > 0
    assert told["gpu_seconds"] > 0


def test_mapped_batches_and_functions_that_defer_write_their_answers_and_update_the_asset_once_each(
    airflow: ScheduledAirflow, folder: Path
):
    run_id = airflow.trigger("mapped_batches")
    state = airflow.wait_for_run("mapped_batches", run_id, RUN_TIMEOUT_S)
    assert state == "success", airflow.log("mapped_batches", run_id, "worker.answer")
    # Not the runs of the downstream DAG: of two events within milliseconds Airflow may see only one in time.
    found = airflow.request("GET", "/assets/events?source_dag_id=mapped_batches")["asset_events"]
    told = [event["extra"] for event in found]
    assert len(told) == 2
    rows = {Path(event["output"]).name.rpartition("-")[2]: event["rows"] for event in told}
    assert rows == {"a.jsonl": 3, "b.jsonl": 5}
    assert not any(event["partial"] for event in told)
    answers = [folder / f"{run_id}-function-{index}.jsonl" for index in range(2)]
    assert [len(path.read_text().splitlines()) for path in answers] == [2, 4], (
        "what @task.arcadia_batch wrote"
    )
    (row, _) = map(json.loads, Path(f"{answers[0]}.input.jsonl").read_text().splitlines())
    assert row["prompt"] == f"number 0 of {run_id}"
