"""Airflow plugin that registers the listeners. Every component of Airflow imports it: it must stay light."""

from __future__ import annotations

from airflow.plugins_manager import AirflowPlugin

from airflow_arcadia.listeners import runs, tasks


class ArcadiaListenersPlugin(AirflowPlugin):
    """Ends a run's workers when the run ends, and keeps a lease renewed while a task of its group runs."""

    name = "arcadia_listeners"
    listeners = [runs, tasks]
