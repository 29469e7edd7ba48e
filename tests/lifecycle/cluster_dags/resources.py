"""DAGs for Airflow with workers that are Arcadia's Worker resources."""

from tests.lifecycle.dag_maker import make_all
from tests.lifecycle.in_cluster import RESOURCE

DAGS = make_all("resource_", group={"launcher": "custom_resource", "custom_resource": RESOURCE})
for made in DAGS:
    globals()[made.dag_id] = made
