"""A DAG of Airflow that a user deletes the file of while it runs."""

from __future__ import annotations

from tests.lifecycle.dag_maker import LAPSING_S, make

dag = make("deletable", rows=150, lease_duration=LAPSING_S)
