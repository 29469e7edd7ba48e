"""A representative part of the lifecycle matrix; ``make matrix`` runs all of it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.lifecycle.cases import AIRFLOW_GONE, ALL_OF_AIRFLOW, CASES
from tests.lifecycle.cluster_cases import CASES as CLUSTER_CASES
from tests.lifecycle.cluster_cases import LAUNCHERS
from tests.lifecycle.cluster_dags import pods, rays, resources
from tests.lifecycle.cluster_stage import cluster_stage
from tests.lifecycle.dags import deletable, lifecycle, real_engine
from tests.lifecycle.matrix import (
    HEADER,
    Result,
    Together,
    choose,
    outages,
    run_all,
    write_table,
    write_tables,
)
from tests.lifecycle.stage import lifecycle_stage


@pytest.mark.airflow
@pytest.mark.timeout(600)
def test_after_representative_events_nothing_is_left_and_the_runs_state_is_true(tmp_path: Path):
    cases = [case for case in CASES if case.representative]
    with lifecycle_stage(tmp_path / "life") as stage:
        results = run_all(stage, cases, jobs=4)
    assert [result.row() for result in results if result.red] == []
    assert len(results) == len(cases) > 3


@pytest.mark.airflow
@pytest.mark.timeout(600)
def test_after_representative_events_nothing_is_left_in_a_cluster_and_the_runs_state_is_true(tmp_path: Path):
    cases = [case for case in CLUSTER_CASES if case.representative]
    with cluster_stage(tmp_path / "life") as stage:
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
    write_table(page, [Result(CASES[2], "success", 1.0, 0.0)], whole=True)
    assert CASES[0].name not in page.read_text()


def test_the_cases_have_different_names_and_dags_that_are_there():
    names = [case.name for case in CASES]
    dags = [*lifecycle.DAGS, *real_engine.DAGS, deletable.dag]
    assert len(names) == len(set(names))
    assert {f"life_{case.dag}" for case in CASES} <= {dag.dag_id for dag in dags}


def test_so_do_the_cases_in_a_cluster():
    names = [case.name for case in CLUSTER_CASES]
    assert len(names) == len(set(names))
    dags = [*pods.DAGS, *resources.DAGS, *rays.DAGS]
    assert {f"life_{case.dag}" for case in CLUSTER_CASES} <= {dag.dag_id for dag in dags}
    assert {case.name.partition(".")[0] for case in CLUSTER_CASES} == set(LAUNCHERS)
    assert all(case.in_cluster for case in CLUSTER_CASES)


def test_each_place_has_a_table_of_its_own(tmp_path: Path):
    page = tmp_path / "page.md"
    empty = [f"<!-- {name} -->\n{HEADER}\n<!-- /{name} -->\n" for name in ("matrix", "cluster matrix")]
    page.write_text("".join(empty))
    results = [Result(case, "success", 1.0, 0.0) for case in (CASES[0], CLUSTER_CASES[0])]
    write_tables(page, results)
    of_processes, in_cluster = page.read_text().split("<!-- /matrix -->")
    assert f"| {CASES[0].name} |" in of_processes
    assert f"| {CLUSTER_CASES[0].name} |" in in_cluster
    assert page.read_text().count("success.task") == 2


def test_the_cases_of_an_outage_meet_and_one_that_breaks_does_not_hold_up_the_others():
    together, happened = Together(3), []

    def case(index: int) -> None:
        together.meet("begin", lambda: happened.append("begin"))
        if index == 0:
            together.leave()
            return
        together.meet("end", lambda: happened.append("end"))

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(case, range(3), timeout=10))
    assert happened == ["begin", "end"]


def test_cases_are_put_together_by_outage_at_most_so_many_at_once():
    gone = [case for case in CASES if case.outage is AIRFLOW_GONE and not case.real]
    others = [case for case in CASES if case.outage is None]
    groups = outages([*others, *gone], at_once=3)
    assert [case for group in groups for case in group] == gone
    assert max(map(len, groups)) == 3
    assert AIRFLOW_GONE.name == "airflow.gone"
    assert len(ALL_OF_AIRFLOW) == 4


def test_random_paths_are_the_same_for_the_same_seed_and_have_no_real_engine():
    chosen = choose("*", soak=300, seed=1)
    assert chosen == choose("*", soak=300, seed=1) != choose("*", soak=300, seed=2)
    assert len(chosen) == 300
    assert not any(case.real for case in chosen)
    assert next(case.name for case in choose("real.*", soak=0, seed=1)) == "real.success"
