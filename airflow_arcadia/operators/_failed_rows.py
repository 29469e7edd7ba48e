"""A person's request to answer the failed rows of a batch again, kept in the configuration of its run.

The run's configuration is what every attempt of a task can read on every Airflow supported, and what the UI
shows beside the run. A request names the completion of the batch whose failed rows are meant, so that it is
carried out once: after it the batch has another completion, and a task that is cleared later finds it done.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CONF_KEY = "arcadia_retry_failed_rows"
"""Key in the run's configuration: name of the task → ``completion_id``, empty for a batch without one."""


def task_name(task_id: str, map_index: int) -> str:
    """Name of the task instance in a request."""
    return f"{task_id}[{map_index}]" if map_index >= 0 else task_id


def with_request(conf: Mapping[str, Any] | None, task: str, completion_id: str) -> dict[str, Any]:
    """The run's configuration with a request for that task; other requests stay."""
    before = (conf or {}).get(CONF_KEY)
    return {
        **(conf or {}),
        CONF_KEY: {**(before if isinstance(before, Mapping) else {}), task: completion_id},
    }


def requested(conf: Mapping[str, Any] | None, task: str) -> str | None:
    """The completion whose failed rows are to be answered again; None without a request for that task."""
    requests = (conf or {}).get(CONF_KEY)
    found = requests.get(task) if isinstance(requests, Mapping) else None
    return None if found is None else str(found)


def is_due(request: str | None, completion_id: str | None) -> bool:
    """Whether the request is still to be carried out.

    :param completion_id: of the finished batch; None for one that is not finished, or cannot be read.
    """
    return request is not None and completion_id in {None, request}
