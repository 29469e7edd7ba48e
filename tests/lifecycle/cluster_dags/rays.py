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
NAMES = (
    "quick",
    "task",
    "timeout",
    "short_lease",
    "lapsing",
    "lapsing_quick",
    "warm_quick",
    "held_loading",
    "held_batch",
)
DAGS = make_all("ray_", *NAMES, group=GROUP)
for made in DAGS:
    globals()[made.dag_id] = made
