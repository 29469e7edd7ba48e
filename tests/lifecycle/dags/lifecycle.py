"""The DAGs of the lifecycle matrix, with a stand-in for the engine, for Airflow."""

from __future__ import annotations

from tests.lifecycle.dag_maker import make_all

DAGS = make_all()
for made in DAGS:
    globals()[made.dag_id] = made
