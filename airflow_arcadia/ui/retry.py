"""Which tasks of a run have to run again so that a batch answers its failed rows. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from airflow_arcadia.exceptions import ArcadiaConfigError
from airflow_arcadia.ui.view import LAUNCH_OPERATOR, PROVISION_OPERATOR, RAY_SENSOR, RUNNING_STATES

TEARDOWN = "ArcadiaTeardownWorkerOperator"
WORKER_STEPS = frozenset(
    {
        "ArcadiaReserveWorkerOperator",
        "ArcadiaCheckBatchInputOperator",
        PROVISION_OPERATOR,
        RAY_SENSOR,
        LAUNCH_OPERATOR,
        "ArcadiaModelReadySensor",
    }
)
"""Operators that bring a worker up: they run again where it was torn down."""


@dataclass(frozen=True)
class Node:
    """A task of a DAG: the name of its operator's class, and its direct relatives."""

    operator: str
    upstream: frozenset[str]
    downstream: frozenset[str]


def tasks_to_clear(
    graph: Mapping[str, Node], batch: str, states: Mapping[str, Sequence[str | None]]
) -> set[str]:
    """The batch and all that depends on it, and what brings its worker up where that is gone.

    :param graph: every task of the DAG by its id.
    :param batch: id of the batch task.
    :param states: of the task instances by task id; None for one that has not run.

    Raises :class:`ArcadiaConfigError` while the batch or the worker's teardown runs.
    """
    after = _reachable(graph, batch, lambda node: node.downstream)
    teardowns = {task for task in after if graph[task].operator == TEARDOWN}
    for task, what in ((batch, "The batch"), *((task, "The teardown of its worker") for task in teardowns)):
        if RUNNING_STATES & set(states.get(task, ())):
            raise ArcadiaConfigError(
                f"{what} is running or about to.", what_to_do="Retry the failed rows once the run has ended."
            )
    chosen = {batch} | after
    if any(state is not None for task in teardowns for state in states.get(task, ())):
        before = _reachable(graph, batch, lambda node: node.upstream)
        chosen |= {task for task in before if graph[task].operator in WORKER_STEPS}
    return chosen


def _reachable(graph: Mapping[str, Node], start: str, relatives: Callable[[Node], Iterable[str]]) -> set[str]:
    found: set[str] = set()
    left = list(relatives(graph[start])) if start in graph else []
    while left:
        task = left.pop()
        if task in graph and task not in found:
            found.add(task)
            left.extend(relatives(graph[task]))
    return found
