"""Airflow plugin that adds the Arcadia page, the batch tab of a task instance, and links on tasks' pages.

The pages are served by an application of their own and shown in frames: they share nothing with Airflow's
front end, so that no release of it breaks them.
"""

from __future__ import annotations

from typing import Any

from airflow.configuration import conf
from airflow.plugins_manager import AirflowPlugin

from airflow_arcadia.ui.links import LINKS

URL_PREFIX = "/arcadia"


def _page(path: str) -> str:
    """URL of a page as a browser sees it: Airflow may be served below a prefix."""
    base = str(conf.get("api", "base_url", fallback="") or "")
    prefix = base.partition("://")[2].partition("/")[2].strip("/")
    return f"{f'/{prefix}' if prefix else ''}{URL_PREFIX}/{path}"


class _LazyApp:
    """The application, imported with its first request: every component of Airflow imports its plugins."""

    def __init__(self) -> None:
        self._app: Any = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self._app is None:
            from airflow_arcadia.ui.app import create_app  # noqa: PLC0415

            self._app = create_app()
        await self._app(scope, receive, send)


class ArcadiaUiPlugin(AirflowPlugin):
    """The page *Arcadia* in the navigation, the tab *Batch* of a task instance, and links of tasks."""

    name = "arcadia_ui"
    fastapi_apps = [{"app": _LazyApp(), "url_prefix": URL_PREFIX, "name": "Arcadia"}]
    operator_extra_links = list(LINKS)
    external_views = [
        {
            "name": "Arcadia",
            "href": _page(""),
            "destination": "nav",
            "url_route": "arcadia",
            "category": "browse",
        },
        {
            "name": "Batch",
            "href": _page("batch?dag_id={DAG_ID}&run_id={RUN_ID}&task_id={TASK_ID}&map_index={MAP_INDEX}"),
            "destination": "task_instance",
            "url_route": "arcadia-batch",
        },
    ]
