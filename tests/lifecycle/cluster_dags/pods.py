"""DAGs for Airflow with workers that are pods."""

from tests.lifecycle.dag_maker import make_all
from tests.lifecycle.in_cluster import POD

DAGS = make_all("pod_", group={"launcher": "pod", "pod": POD})
for made in DAGS:
    globals()[made.dag_id] = made
