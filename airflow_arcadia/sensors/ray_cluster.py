"""Wait for a Ray cluster that can take a worker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseSensorOperator

from airflow_arcadia.hooks.arcadia import DEFAULT_CONN_ID

if TYPE_CHECKING:
    pass


class ArcadiaRayClusterSensor(BaseSensorOperator):
    """Waits until a Ray cluster of arcadia-config is usable and has enough *free* GPUs.

    Returns its connection. What waiting cannot mend (an unknown cluster, a wrong token or version, fewer
    GPUs in all than asked for) fails at once.

    :param lease: name of the lease the connection is for.
    :param ray_cluster: index (``RAY_CLUSTER_INDEX``), name, or ``"auto"``.
    :param num_gpus: ``NUMBER_GPUS`` that must be free.
    :param poll_interval: seconds between two looks.
    :param arcadia_conn_id: connection of type ``arcadia``.
    """

    template_fields: Sequence[str] = ("lease", "ray_cluster", "num_gpus", "arcadia_conn_id")

    def __init__(
        self,
        *,
        lease: str,
        ray_cluster: int | str = 0,
        num_gpus: int | str = 1,
        poll_interval: float = 10.0,
        arcadia_conn_id: str = DEFAULT_CONN_ID,
        **kwargs: Any,
    ) -> None:
        super().__init__(poke_interval=poll_interval, **kwargs)
        self.lease = lease
        self.ray_cluster = ray_cluster
        self.num_gpus = num_gpus
        self.arcadia_conn_id = arcadia_conn_id
