"""Wait for a Ray cluster that can take a worker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseSensorOperator, PokeReturnValue

from airflow_arcadia.exceptions import RayClusterError
from airflow_arcadia.hooks.arcadia import DEFAULT_CONN_ID, ArcadiaHook, fail_without_retry
from airflow_arcadia.ray_cluster.provision import provision
from airflow_arcadia.validation import is_rendered_later
from airflow_arcadia.worker import parse_num_gpus

if TYPE_CHECKING:
    from airflow.sdk import Context


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
    ui_color = "#e8f4ea"

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
        if not is_rendered_later(num_gpus):
            parse_num_gpus(num_gpus)

    def poke(self, context: Context) -> PokeReturnValue:
        """Look once; the connection is the value when it is usable."""
        with fail_without_retry():
            hook = ArcadiaHook(self.arcadia_conn_id)
            try:
                connection = provision(
                    hook.config,
                    self.ray_cluster,
                    parse_num_gpus(self.num_gpus),
                    lease=self.lease,
                    backend=hook.ray_backend(self.lease),
                )
            except RayClusterError as error:
                if not error.retryable:
                    raise
                self.log.info("Not yet: %s", error.what)
                return PokeReturnValue(False)
        return PokeReturnValue(True, xcom_value=connection.to_dict())
