"""Where a run is, read from the JSON log lines of ``airflow dags test``. Pure: (state, line) → state.

The lines are those of Airflow 3.3 with ``[logging] json_logs``: ``[DAG TEST] starting task_id=…``,
``Task started``, ``[DAG TEST] end task …``, and what the operators themselves log.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

AIRFLOW_START = "airflow_start"
AIRFLOW_END = "airflow_end"

_TASK = re.compile(r"\[DAG TEST\] (starting|end task) task_id=(\S+)")
_ROWS = re.compile(
    r"(?P<done>\d+) / (?P<total>\d+) rows \((?P<failed>\d+) failed\), (?P<rows_per_s>[\d.]+) rows/s, "
    r"(?P<tokens_per_s>[\d.]+) tokens/s, ETA (?P<eta>unknown|\d+ s)"
)


@dataclass(frozen=True)
class Rows:
    """How far the batch is.

    :param eta: seconds to go as text, or ``unknown``.
    """

    done: int
    total: int
    failed: int
    rows_per_s: float
    tokens_per_s: float
    eta: str


@dataclass(frozen=True)
class Run:
    """What is known of a run.

    :param began: when it, or its current phase, began: seconds since the epoch.
    :param step: the task that runs now, without its group's name; None between two.
    :param phases: seconds of every phase that is over; together with the current one they leave no gap.
    :param errors: what tasks failed with.
    """

    began: float
    step: str | None = None
    phases: Mapping[str, float] = field(default_factory=dict)
    rows: Rows | None = None
    errors: tuple[str, ...] = ()


def read(run: Run, line: str) -> Run:
    """The run after one more line; a line that is no JSON object changes nothing."""
    try:
        entry = json.loads(line)
        text, at = str(entry["event"]), datetime.fromisoformat(entry["timestamp"]).timestamp()
    except (ValueError, KeyError, TypeError):
        return run
    if found := _TASK.search(text):
        name = found[2].rpartition(".")[2]
        return replace(run, step=name) if found[1] == "starting" else _over(run, name, at)
    if text == "Task started" and not run.phases:
        # Airflow loads its execution API before its first task: that is no time of the task.
        return _over(run, AIRFLOW_START, at, step=run.step)
    if found := _ROWS.search(text):
        return replace(run, rows=_rows(found))
    if entry.get("exception"):
        return replace(run, errors=(*run.errors, _error(run.step, entry["exception"])))
    return run


def finish(run: Run, at: float) -> Run:
    """The run after its process ended: what is left is Airflow's own end."""
    return _over(run, run.step or AIRFLOW_END, at)


def line_of(rows: Rows) -> str:
    """One line for whoever waits."""
    rate = f"{rows.rows_per_s:.1f} rows/s"
    return f"{rows.done} / {rows.total} rows ({rows.failed} failed), {rate}, ETA {rows.eta}"


def _over(run: Run, phase: str, at: float, step: str | None = None) -> Run:
    took = run.phases.get(phase, 0.0) + max(0.0, at - run.began)
    return replace(run, began=at, step=step, phases={**run.phases, phase: round(took, 2)})


def _rows(found: re.Match[str]) -> Rows:
    return Rows(
        int(found["done"]),
        int(found["total"]),
        int(found["failed"]),
        float(found["rows_per_s"]),
        float(found["tokens_per_s"]),
        found["eta"],
    )


def _error(step: str | None, exceptions: list[dict[str, Any]]) -> str:
    # What was raised comes first, its causes after it.
    raised = exceptions[0]
    return f"{step or 'airflow'}: {raised.get('exc_type')}: {raised.get('exc_value')}"
