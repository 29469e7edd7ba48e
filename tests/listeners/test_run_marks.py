"""What a user marks a run as is kept for its teardowns, in the transaction of the mark."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from airflow.models import DagRun, import_all_models
from airflow.models.base import Base
from airflow.models.taskinstance import TaskInstance
from airflow.models.xcom import XComModel
from airflow.utils.timezone import utcnow
from sqlalchemy import create_engine, insert, select, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session
from sqlalchemy.pool import StaticPool

from airflow_arcadia.listeners import run_marks, runs

FAILED, SUCCESS = (f"Dag Run's state was manually set to `{state}`." for state in ("failed", "success"))


@pytest.fixture
def session() -> Iterator[Session]:
    """A database with one run that has a mapped worker."""
    engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
    import_all_models()
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.execute(
            insert(DagRun).values(
                id=7,
                dag_id="d",
                run_id="r",
                state="running",
                run_type="manual",
                clear_number=2,
                run_after=utcnow(),
            )
        )
        rows = [("work", -1, "BaseOperator"), *(("reserve", index, runs.RESERVE) for index in (0, 1))]
        for task_id, index, operator in rows:
            session.execute(
                insert(TaskInstance).values(
                    task_id=task_id,
                    dag_id="d",
                    run_id="r",
                    map_index=index,
                    operator=operator,
                    pool="p",
                    pool_slots=1,
                )
            )
        yield session


def run_of(session: Session) -> DagRun:
    found = session.scalar(select(DagRun))
    assert found is not None
    return found


def marks(session: Session) -> list[tuple[str, int, str]]:
    """Task, map index, and the mark without its time."""
    columns = (XComModel.task_id, XComModel.map_index, XComModel.value)
    rows = session.execute(select(*columns).order_by(XComModel.map_index)).all()
    return [(task_id, map_index, value.rpartition(" ")[0]) for task_id, map_index, value in rows]


def test_it_is_kept_for_every_reserve_task_and_the_last_one_counts(
    session: Session, monkeypatch: pytest.MonkeyPatch
):
    # The teardown does the work: it still runs.
    monkeypatch.setattr(runs, "start_reaping", pytest.fail)
    runs.on_dag_run_failed(run_of(session), FAILED)
    assert marks(session) == [("reserve", 0, "failed 2"), ("reserve", 1, "failed 2")]
    runs.on_dag_run_success(run_of(session), SUCCESS)
    assert marks(session) == [("reserve", 0, "success 2"), ("reserve", 1, "success 2")]


def test_it_goes_with_the_transaction_that_marks_the_run(session: Session):
    session.commit()
    run = run_of(session)
    run.state = "failed"
    session.flush()
    runs.on_dag_run_failed(run, FAILED)
    session.rollback()
    assert (run_of(session).state, marks(session)) == ("running", [])


def test_a_run_that_ends_by_itself_is_not_marked(session: Session):
    runs.on_dag_run_success(run_of(session), "success")
    runs.on_dag_run_success(DagRun(dag_id="d", run_id="of-no-database"), SUCCESS)
    assert marks(session) == []


def test_a_mark_that_cannot_be_kept_leaves_the_users_request_whole(
    session: Session, monkeypatch: pytest.MonkeyPatch
):
    run = run_of(session)
    run.state = "failed"

    def broken(*args: object, session: Session, **kwargs: object) -> None:
        session.execute(text("INSERT INTO xcom (key) VALUES ('without a task')"))

    monkeypatch.setattr(XComModel, "set", broken)
    with pytest.raises(Exception, match="NOT NULL"):
        runs.on_dag_run_failed(run, FAILED)
    session.commit()
    assert run_of(session).state == "failed"


def test_a_database_that_is_locked_gets_the_mark_some_moments_later(
    session: Session, monkeypatch: pytest.MonkeyPatch
):
    """As SQLite, which does not let a transaction write that has read before another wrote."""
    write, refused = run_marks._write, []

    def locked(of: Session, *arguments: Any, **more: Any) -> None:
        if len(refused) < 3:
            refused.append(of)
            raise OperationalError("INSERT", {}, Exception("database is locked"))
        write(of, *arguments, **more)

    @contextlib.contextmanager
    def create_session() -> Iterator[Session]:
        with session.begin_nested():
            yield session

    monkeypatch.setattr(run_marks, "_write", locked)
    monkeypatch.setattr(run_marks, "_PAUSE_S", 0.01)
    monkeypatch.setattr("airflow.utils.session.create_session", create_session)
    run = run_of(session)
    run.state = "failed"
    runs.on_dag_run_failed(run, FAILED)
    assert run.state == "failed", "what the user asked for stays"
    for thread in threading.enumerate():
        if thread.name == "arcadia-run-mark":
            thread.join(10)
    assert len(refused) == 3
    assert marks(session) == [("reserve", 0, "failed 2"), ("reserve", 1, "failed 2")]


def test_a_refused_mark_does_not_replace_a_later_one_that_was_written_before_it(
    session: Session, monkeypatch: pytest.MonkeyPatch
):
    @contextlib.contextmanager
    def create_session() -> Iterator[Session]:
        yield session

    monkeypatch.setattr(run_marks, "_PAUSE_S", 0.0)
    monkeypatch.setattr("airflow.utils.session.create_session", create_session)
    of_run = {"dag_id": "d", "run_id": "r"}
    run_marks._write(session, of_run, "success 2 200.5", runs.RESERVE)
    run_marks._write_later(of_run, "failed 2 100.25", runs.RESERVE)
    assert marks(session) == [("reserve", 0, "success 2"), ("reserve", 1, "success 2")]
    run_marks._write_later(of_run, "failed 2 1000", runs.RESERVE)
    assert marks(session) == [("reserve", 0, "failed 2"), ("reserve", 1, "failed 2")]


def test_the_mark_of_another_machine_counts_although_its_clock_is_behind(session: Session):
    of_run = {"dag_id": "d", "run_id": "r"}
    run_marks._write(session, of_run, "success 1 200.5", runs.RESERVE)
    run_marks._write(session, of_run, "failed 2 100.25", runs.RESERVE)
    assert marks(session) == [("reserve", 0, "failed 2"), ("reserve", 1, "failed 2")]


@pytest.mark.parametrize(
    ("kept", "cleared", "state"),
    [
        ("failed 0 1764146400.25", 0, "failed"),
        ("failed 1 1764146400.25", 2, None),
        ("failed 0", 0, "failed"),
        ("success 3", 2, "success"),
        ("failed 1", 2, None),
        (None, 0, None),
        ("", 0, None),
        ("failed", 0, None),
    ],
)
def test_a_mark_of_before_the_run_was_cleared_no_longer_counts(kept: object, cleared: int, state: str | None):
    assert run_marks.parse(kept, cleared) == state
