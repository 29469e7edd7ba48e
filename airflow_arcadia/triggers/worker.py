"""Wait for a worker's model without holding a slot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow.triggers.base import BaseTrigger


class ArcadiaModelReadyTrigger(BaseTrigger):
    """Fires once, when the model is ready or never will be.

    :param handle: the worker's handle as a dict.
    :param state_dir: root of the lease store.
    :param worker_python: Python of the worker's environment.
    :param started_at: when the wait began, seconds since the epoch; a restarted triggerer keeps it.
    :param startup_timeout: seconds the worker may take.
    :param poll_interval: seconds between two looks.
    """

    def __init__(
        self,
        handle: Mapping[str, Any],
        state_dir: str,
        worker_python: str,
        started_at: float,
        startup_timeout: float,
        poll_interval: float,
    ) -> None:
        super().__init__()
        self.handle = dict(handle)
        self.state_dir = state_dir
        self.worker_python = worker_python
        self.started_at = started_at
        self.startup_timeout = startup_timeout
        self.poll_interval = poll_interval
