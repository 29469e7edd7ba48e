"""Links on a task's page: the Ray dashboard and the worker's API."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from airflow.providers.common.compat.sdk import XCom
from airflow.sdk import BaseOperatorLink

if TYPE_CHECKING:
    from airflow.sdk.types import TaskInstanceKey


class _ReturnedLink(BaseOperatorLink):
    """A link whose URL is one field of what the task returned."""

    field: ClassVar[str]

    def get_link(self, operator: Any, *, ti_key: TaskInstanceKey) -> str:
        """The URL, or an empty string while there is none."""
        returned = XCom.get_value(ti_key=ti_key, key="return_value")
        return str(returned.get(self.field) or "") if isinstance(returned, dict) else ""


class RayDashboardLink(_ReturnedLink):
    """Opens the dashboard of the Ray cluster the worker is placed on."""

    name = "Ray dashboard"
    field = "dashboard_url"


class WorkerLink(_ReturnedLink):
    """Opens the worker's own server."""

    name = "Worker API"
    field = "url"
