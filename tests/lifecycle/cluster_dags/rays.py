"""DAGs for Airflow with pods on a Ray cluster that is made for the run."""

from tests.lifecycle.dag_maker import make_all
from tests.lifecycle.in_cluster import POD, RAY_CLUSTER

GROUP = {
    "launcher": "pod",
    "pod": POD,
    "num_gpus": 2,
    "create": "if_missing",
    "ray_cluster_spec": RAY_CLUSTER,
}
DAGS = make_all("ray_", group=GROUP)
for made in DAGS:
    globals()[made.dag_id] = made
