"""A representative part of the lifecycle matrix; ``make matrix`` runs all of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lifecycle.cases import CASES
from tests.lifecycle.dags.lifecycle import DAGS
from tests.lifecycle.matrix import run_all
from tests.lifecycle.stage import lifecycle_stage


@pytest.mark.e2e
@pytest.mark.timeout(600)
def test_after_representative_events_nothing_is_left_and_the_runs_state_is_true(tmp_path: Path):
    cases = [case for case in CASES if case.representative]
    with lifecycle_stage(tmp_path / "life") as stage:
        results = run_all(stage, cases, jobs=4)
    assert [result.row() for result in results if result.red] == []
    assert len(results) == len(cases) > 3


def test_the_cases_have_different_names_and_dags_that_are_there():
    names = [case.name for case in CASES]
    assert len(names) == len(set(names))
    assert {f"life_{case.dag}" for case in CASES} <= {dag.dag_id for dag in DAGS}
