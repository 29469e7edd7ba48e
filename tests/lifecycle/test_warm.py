"""Warm workers on a whole Airflow: runs one after another, at the same time, and nothing at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.lifecycle.stage import Run, Stage, lifecycle_stage, wait

DAG = "life_warm_shared"
KEPT_S = 30.0


def finished(run: Run) -> str:
    return str(wait(lambda: (s := run.state) in {"success", "failed"} and s, 180, "the run's end"))


def handle(run: Run) -> dict[str, Any]:
    path = (
        f"/dags/{run.dag_id}/dagRuns/{run.run_id}/taskInstances/worker.launch_worker/xcomEntries/return_value"
    )
    return dict(run.stage.airflow.request("GET", path)["value"])


def nothing_left(stage: Stage) -> bool:
    return stage.store.names() == [] and not any(stage._left_of(name) for name in stage.engines)


@pytest.mark.e2e
@pytest.mark.timeout(600)
def test_runs_adopt_and_share_a_worker_that_ends_with_its_warm_period(tmp_path: Path):
    with lifecycle_stage(tmp_path / "life") as stage:
        first = stage.start(DAG, {})
        assert finished(first) == "success"
        second = stage.start(DAG, {})
        assert finished(second) == "success"
        both = [stage.start(DAG, {}) for _ in range(2)]
        assert [finished(run) for run in both] == ["success"] * 2
        runs = [first, second, *both]
        assert len({handle(run)["where"]["pid"] for run in runs}) == 1
        assert [run.rows() for run in runs] == [10] * 4
        for run in runs:
            took = run.seconds()
            print("seconds of launch_worker and model_ready:", took["launch_worker"], took["model_ready"])
        assert len(stage.store.names()) == 1, "only the warm worker's lease is left"
        wait(lambda: nothing_left(stage), KEPT_S + 30, "everything to be gone after the warm period")
