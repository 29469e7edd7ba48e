"""What an operator got from the task before it: there is nothing when that was marked instead of run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow_arcadia.exceptions import ArcadiaConfigError
from airflow_arcadia.worker import WorkerHandle


def require_lease(lease: object) -> str:
    """The lease's name. Raises :class:`ArcadiaConfigError` when the reserve task returned none."""
    if isinstance(lease, str) and lease not in {"", "None"}:
        return lease
    raise ArcadiaConfigError(
        "This task got no lease: the reserve task before it returned nothing, because it was marked "
        "success or skipped instead of run.",
        what_to_do="Clear the run from its reserve task.",
    )


def require_handle(worker: object) -> WorkerHandle:
    """The worker's handle. Raises :class:`ArcadiaConfigError` when the task before returned none."""
    if isinstance(worker, Mapping):
        return WorkerHandle.from_dict(worker)
    raise ArcadiaConfigError(
        f"This task got no worker but {worker!r}: the task that returns it was marked success or skipped "
        "instead of run.",
        still_running="A worker that was launched before runs until the teardown.",
        what_to_do="Clear the run from its reserve task.",
    )


def optional(value: Any) -> Any:
    """``value``, or None for the text that a template makes of a missing XCom."""
    return None if value in ("", "None") else value
