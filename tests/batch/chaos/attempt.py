"""One attempt at a batch, in a process of its own."""

from __future__ import annotations

import os
import sys
from typing import Any

from airflow_arcadia.batch import BatchSpec, Endpoint, run_batch
from airflow_arcadia.batch.storage.local import LocalFolder
from airflow_arcadia.exceptions import ArcadiaError

DONE, ENDED, KILLED = 0, 3, 137
"""Exit statuses."""
_STORAGE_CALLS = ("create", "create_only", "publish", "read", "remove", "remove_all", "sizes")


def attempt(spec: dict[str, Any], urls: list[str], kill_at: int, log: str) -> None:
    """One attempt, in a process of its own: it ends at its ``kill_at``-th storage call, 0 never."""
    with open(log, "w") as file:
        os.dup2(file.fileno(), 2)
    if kill_at:
        _kill_at_storage_call(kill_at)
    try:
        run_batch(BatchSpec(**spec), [Endpoint(url) for url in urls])
    except ArcadiaError as error:
        print(repr(error), error, file=sys.stderr)
        os._exit(ENDED)
    os._exit(DONE)


def _kill_at_storage_call(number: int) -> None:
    """End the process, with nothing run, before or after the storage call of this number."""
    calls = 0

    def patch(name: str) -> None:
        whole = getattr(LocalFolder, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            mine = calls
            if mine == number and number % 2:
                os._exit(KILLED)
            found = whole(*args, **kwargs)
            if mine == number:
                os._exit(KILLED)
            return found

        setattr(LocalFolder, name, counted)

    for name in _STORAGE_CALLS:
        patch(name)
