"""What :mod:`~airflow_arcadia.ray_cluster.provision` needs of a place that runs Ray clusters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from airflow_arcadia.config import RayCluster
from airflow_arcadia.preflight import Versions
from airflow_arcadia.ray_dashboard import RayDashboard


class RayBackend(Protocol):
    """A place that runs Ray clusters: this machine, or a namespace of a Kubernetes cluster."""

    def versions(self) -> Versions | None:
        """What the worker will run; None where that is only known inside its image."""

    def dashboard(self, url: str) -> RayDashboard:
        """A client with the token that Ray clusters ask for."""

    def check(self, spec: Mapping[str, Any] | None) -> None:
        """Raise :class:`ArcadiaConfigError` for a ``ray_cluster_spec`` that is not valid here."""

    def may_create(self, cluster: RayCluster | None) -> bool:
        """Whether one can be made in place of ``cluster``, or beside all (None)."""

    def use(self, lease: str, cluster: RayCluster) -> None:
        """Keep ``cluster`` for as long as the lease holds, where it was made here under another lease."""

    def created_before(self, lease: str, cluster: RayCluster | None) -> bool:
        """Whether an earlier attempt made one under that lease, which is still there."""

    def create(
        self, lease: str, cluster: RayCluster | None, num_gpus: int, spec: Mapping[str, Any]
    ) -> RayCluster:
        """Make one under the lease, or find the one made before, wait for it, and say where it is.

        Raises :class:`~airflow_arcadia.exceptions.RayClusterError` with the reason when it does not come up.
        """
