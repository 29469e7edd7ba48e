"""A representative part of the lifecycle matrix; ``make matrix`` runs all of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lifecycle.cases import CASES
from tests.lifecycle.dags.lifecycle import DAGS
from tests.lifecycle.matrix import HEADER, Result, run_all, write_table
from tests.lifecycle.stage import lifecycle_stage


@pytest.mark.e2e
@pytest.mark.timeout(600)
def test_after_representative_events_nothing_is_left_and_the_runs_state_is_true(tmp_path: Path):
    cases = [case for case in CASES if case.representative]
    with lifecycle_stage(tmp_path / "life") as stage:
        results = run_all(stage, cases, jobs=4)
    assert [result.row() for result in results if result.red] == []
    assert len(results) == len(cases) > 3


def test_rows_replace_those_of_the_same_cases_in_the_document(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n<!-- matrix -->\n{HEADER}\n<!-- /matrix -->\nafter\n")
    for state in ("failed", "success"):
        write_table(page, [Result(CASES[1], state, 1.0, 0.0), Result(CASES[0], state, 1.0, 0.0)])
    lines = page.read_text().splitlines()
    rows = lines[4:-2]
    assert [row.split("|")[1].strip() for row in rows] == sorted(case.name for case in CASES[:2])
    assert "failed" not in "".join(rows)
    assert (lines[0], lines[-1]) == ("before", "after")


def test_the_cases_have_different_names_and_dags_that_are_there():
    names = [case.name for case in CASES]
    assert len(names) == len(set(names))
    assert {f"life_{case.dag}" for case in CASES} <= {dag.dag_id for dag in DAGS}
