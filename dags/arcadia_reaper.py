"""Ends workers that nobody holds any more: the net under leases and teardowns. Keep it unpaused.

``ARCADIA_REAP_CONNECTIONS`` names the arcadia connections, separated by commas; by default those that
``AIRFLOW_CONN_…`` variables hold.
"""

import os

import pendulum
from airflow.sdk import DAG

from airflow_arcadia import ArcadiaReapWorkersOperator

with DAG(
    "arcadia_reaper",
    description="End what leases that nobody holds any more still own.",
    schedule="*/5 * * * *",
    start_date=pendulum.datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,
    doc_md=__doc__,
    tags=["arcadia"],
):
    ArcadiaReapWorkersOperator(
        task_id="reap",
        arcadia_conn_ids=[
            name.strip() for name in os.environ.get("ARCADIA_REAP_CONNECTIONS", "").split(",") if name.strip()
        ],
    )
