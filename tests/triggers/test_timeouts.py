"""A deferred task ends when its execution_timeout does, counted from the start of the attempt."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from types import SimpleNamespace

import pytest

from airflow_arcadia.triggers.timeouts import deferral_timeout

NOW = datetime(2026, 1, 1, 12, tzinfo=timezone.utc)
HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)


@pytest.mark.parametrize(
    ("execution_timeout", "spent", "left"),
    [
        (None, MINUTE, HOUR),
        (2 * HOUR, MINUTE, HOUR),
        (10 * MINUTE, MINUTE, 9 * MINUTE),
        (MINUTE, HOUR, timedelta(seconds=1)),
    ],
)
def test_the_earlier_end_wins(execution_timeout: timedelta | None, spent: timedelta, left: timedelta):
    context = {"ti": SimpleNamespace(start_date=NOW - spent)}
    assert deferral_timeout(context, execution_timeout, HOUR, NOW) == left


def test_without_a_start_the_whole_time_is_left():
    assert deferral_timeout({"ti": SimpleNamespace()}, MINUTE, HOUR) == MINUTE
