"""What runs again so that a batch answers its failed rows."""

from __future__ import annotations

import pytest

from airflow_arcadia.exceptions import ArcadiaConfigError
from airflow_arcadia.ui.retry import TEARDOWN, Node, tasks_to_clear

EDGES = [
    ("prepare", "w.reserve"),
    ("w.reserve", "w.check_input"),
    ("w.check_input", "w.provision"),
    ("w.provision", "w.launch"),
    ("w.launch", "w.ready"),
    ("w.ready", "w.answer"),
    ("w.ready", "w.other"),
    ("w.answer", "w.teardown"),
    ("w.other", "w.teardown"),
    ("w.answer", "publish"),
    ("w.teardown", "report"),
]
OPERATORS = {
    "w.reserve": "ArcadiaReserveWorkerOperator",
    "w.check_input": "ArcadiaCheckBatchInputOperator",
    "w.provision": "ArcadiaProvisionRayClusterOperator",
    "w.launch": "ArcadiaLaunchWorkerOperator",
    "w.ready": "ArcadiaModelReadySensor",
    "w.answer": "ArcadiaBatchInferenceOperator",
    "w.other": "ArcadiaBatchInferenceOperator",
    "w.teardown": TEARDOWN,
}
TASKS = {name for edge in EDGES for name in edge}
GRAPH = {
    name: Node(
        OPERATORS.get(name, "PythonOperator"),
        frozenset(before for before, after in EDGES if after == name),
        frozenset(after for before, after in EDGES if before == name),
    )
    for name in TASKS
}


def states(**changed: str | None) -> dict[str, list[str | None]]:
    return {name: [changed.get(name.removeprefix("w."), "success")] for name in TASKS}


def test_after_the_teardown_the_worker_is_brought_up_again_and_what_depends_on_the_answers_runs_again():
    cleared = tasks_to_clear(GRAPH, "w.answer", states())
    assert cleared == TASKS - {"prepare", "w.other"}


def test_while_the_worker_is_there_only_the_batch_and_what_depends_on_it_run_again():
    cleared = tasks_to_clear(GRAPH, "w.answer", states(teardown=None, report=None, other="running"))
    assert cleared == {"w.answer", "publish", "w.teardown", "report"}


@pytest.mark.parametrize(
    ("task", "state", "named"),
    [
        ("answer", "running", "The batch"),
        ("answer", "deferred", "The batch"),
        ("teardown", "queued", "teardown"),
    ],
)
def test_nothing_is_cleared_while_the_batch_or_the_teardown_runs(task, state, named):
    with pytest.raises(ArcadiaConfigError, match=named):
        tasks_to_clear(GRAPH, "w.answer", states(**{task: state}))


def test_a_batch_without_a_teardown_of_its_own_is_cleared_with_what_depends_on_it():
    graph = {
        "launch": Node("ArcadiaLaunchWorkerOperator", frozenset(), frozenset({"answer"})),
        "answer": Node("ArcadiaBatchInferenceOperator", frozenset({"launch"}), frozenset()),
    }
    assert tasks_to_clear(graph, "answer", {"answer": ["failed"]}) == {"answer"}
