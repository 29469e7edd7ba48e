"""How long a task may stay deferred: Airflow does not apply ``execution_timeout`` there by itself."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from typing import Any

_LEAST = timedelta(seconds=1)  # Airflow refuses to defer for no time at all


def deferral_timeout(
    context: Mapping[str, Any],
    execution_timeout: timedelta | None,
    ours: timedelta,
    now: datetime | None = None,
) -> timedelta:
    """What to pass to ``defer(timeout=…)``: ``ours``, or less where ``execution_timeout`` ends before.

    :param context: the task's; its task instance says when this attempt began.
    :param execution_timeout: the task's own; it counts from the start of the attempt.
    """
    if execution_timeout is None:
        return ours
    began = getattr(context.get("ti"), "start_date", None)
    spent = (now or datetime.now(timezone.utc)) - began if began else timedelta()
    return max(_LEAST, min(ours, execution_timeout - spent))
