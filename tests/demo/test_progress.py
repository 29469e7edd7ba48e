"""The demo's progress, read from log lines."""

import json

from demo.progress import AIRFLOW_END, AIRFLOW_START, Run, finish, line_of, read


def line(second: int, event: str, **more: object) -> str:
    return json.dumps({"timestamp": f"2026-01-01T00:00:{second:02d}+00:00", "event": event, **more})


BEGAN = 1767225600.0  # 2026-01-01T00:00:00Z


def run_of(*lines: str) -> Run:
    run = Run(BEGAN)
    for text in lines:
        run = read(run, text)
    return run


def test_the_phases_leave_no_gap():
    run = run_of(
        "no json",
        line(1, "[DAG TEST] starting task_id=worker.reserve"),
        line(4, "Task started"),
        line(5, "[DAG TEST] end task task_id=worker.reserve"),
        line(6, "[DAG TEST] starting task_id=worker.answer"),
        line(6, "Task started"),
    )
    assert run.step == "answer"
    assert run.phases == {AIRFLOW_START: 4.0, "reserve": 1.0}
    run = finish(read(run, line(9, "[DAG TEST] end task task_id=worker.answer")), BEGAN + 10)
    assert run.phases == {AIRFLOW_START: 4.0, "reserve": 1.0, "answer": 4.0, AIRFLOW_END: 1.0}


def test_the_operators_own_line_tells_the_rows():
    from airflow_arcadia.batch import Progress

    told = str(Progress(5, 72, 4, 1, 2.34, 56.0, None))
    run = run_of(line(1, told))
    assert run.rows is not None
    assert line_of(run.rows) == "5 / 72 rows (1 failed), 2.3 rows/s, ETA unknown"


def test_a_failed_task_is_named_with_its_error():
    exception = [
        {"exc_type": "WorkerError", "exc_value": "It died."},
        {"exc_type": "Cause", "exc_value": "x"},
    ]
    run = run_of(
        line(1, "[DAG TEST] starting task_id=worker.model_ready"),
        line(2, "Task failed with exception", exception=exception),
    )
    assert run.errors == ("model_ready: WorkerError: It died.",)
