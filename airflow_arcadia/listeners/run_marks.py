"""What a user marked a run as while its teardown had not ended.

Airflow lets a teardown finish: the run goes on until then, ends in the teardown's state, and the mark is
recorded nowhere. It is kept here as an XCom of the run's reserve tasks, written in the transaction of the
mark itself, for the teardown to read before it ends.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

KEY = "arcadia_run_marked"
"""XCom of a reserve task: what the run was marked as, how often it had been cleared, when (epoch seconds)."""
_TRIES, _PAUSE_S = 40, 0.25

log = logging.getLogger(__name__)


def record(dag_run: Any, state: str, operator: str) -> None:
    """Keep the mark where the run's teardowns find it; nothing happens for a run without workers.

    :param dag_run: of Airflow's database, in the session that marks it.
    :param state: ``failed`` or ``success``.
    :param operator: class name of the reserve tasks.
    """
    # The listeners are imported by every component of Airflow: a mark is rare.
    from sqlalchemy.exc import OperationalError  # noqa: PLC0415
    from sqlalchemy.orm import object_session  # noqa: PLC0415

    session = object_session(dag_run)
    if session is None:
        return
    of_run = {"dag_id": dag_run.dag_id, "run_id": dag_run.run_id}
    mark = f"{state} {dag_run.clear_number} {time.time()!r}"
    try:
        # A mark that cannot be kept must not undo what the user asked for.
        with session.begin_nested():
            _write(session, of_run, mark, operator)
    except OperationalError as error:
        # In SQLite a transaction that has read cannot write once another has written.
        log.info("The mark of run %s is kept some moments later: %s", dag_run.run_id, error.orig)
        arguments = (of_run, mark, operator)
        threading.Thread(target=_write_later, args=arguments, name="arcadia-run-mark", daemon=True).start()


def _write(
    session: Any, of_run: dict[str, str], mark: str, operator: str, *, unless_later: bool = False
) -> None:
    """Write the mark to every reserve task.

    :param unless_later: leave a mark alone that was made later than this one, and written first.
    """
    from airflow.models.taskinstance import TaskInstance  # noqa: PLC0415
    from airflow.models.xcom import XComModel  # noqa: PLC0415
    from sqlalchemy import select  # noqa: PLC0415

    reserves = (
        select(TaskInstance.task_id, TaskInstance.map_index)
        .filter_by(**of_run)
        .where(TaskInstance.operator == operator)
    )
    for task_id, map_index in session.execute(reserves).all():
        where = {**of_run, "task_id": task_id, "map_index": map_index}
        if unless_later:
            kept = session.scalar(select(XComModel.value).filter_by(key=KEY, **where))
            if _marked_at(kept) > _marked_at(mark):
                continue
        XComModel.set(KEY, mark, **where, serialize=False, session=session)


def _marked_at(text: object) -> float:
    """The time in what :func:`record` kept; 0 where there is none."""
    try:
        return float(str(text).split(" ")[2])
    except (IndexError, ValueError):
        return 0.0


def _write_later(of_run: dict[str, str], mark: str, operator: str) -> None:
    """Write the mark in a transaction of its own, as soon as the database lets it."""
    from airflow.utils.session import create_session  # noqa: PLC0415

    why: Exception | None = None
    for _ in range(_TRIES):
        time.sleep(_PAUSE_S)
        try:
            with create_session() as session:
                _write(session, of_run, mark, operator, unless_later=True)
        except Exception as error:  # noqa: BLE001 - a thread must not end in silence
            why = error
        else:
            return
    log.warning("Run %(run_id)s of %(dag_id)s ends as if nobody had marked it:", of_run, exc_info=why)


def parse(text: object, clear_number: int) -> str | None:
    """The state in what :func:`record` kept; None for a mark of before the run was cleared.

    :param clear_number: how often the run had been cleared when the reading task began.
    """
    state, number, *_ = [*str(text or "").split(" "), ""]
    return state if number.isdigit() and int(number) >= clear_number else None
