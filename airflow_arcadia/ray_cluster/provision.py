"""From arcadia-config to a Ray cluster that is proven usable: an existing one, or one made for this run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from airflow_arcadia.config import ArcadiaConfig, RayCluster
from airflow_arcadia.exceptions import (
    ArcadiaConfigError,
    ArcadiaError,
    RayClusterBusyError,
    RayClusterError,
    RayClusterUnfitError,
    RayClusterUnreachableError,
)
from airflow_arcadia.preflight import Finding, Versions, check_cluster, require
from airflow_arcadia.ray_cluster.backend import RayBackend
from airflow_arcadia.ray_dashboard import ClusterFacts
from airflow_arcadia.worker import RayConnection

AUTO = "auto"
CREATE = ("never", "if_missing")
_BUSY_POLL_S = 0.5


def provision(
    config: ArcadiaConfig,
    ray_cluster: int | str,
    num_gpus: int,
    *,
    lease: str,
    backend: RayBackend,
    create: str = "never",
    ray_cluster_spec: Mapping[str, Any] | None = None,
    busy_wait_s: float = 0.0,
) -> RayConnection:
    """The connection to a cluster that can take a worker of ``num_gpus`` GPUs now.

    :param busy_wait_s: seconds to ask again while GPUs are in use: Ray counts those of a worker that has
        just ended as used for some seconds more.

    A cluster that ``create="if_missing"`` makes is recorded under ``lease`` and ends with it; called again,
    it is found again. Raises :class:`ArcadiaConfigError` for what is wrong in the request and
    :class:`RayClusterError` (its ``retryable`` tells whether waiting can help) for what is wrong with the
    cluster.
    """
    if create not in CREATE:
        raise ArcadiaConfigError(
            f"create is {create!r}.", what_to_do=f"Use one of {', '.join(map(repr, CREATE))}."
        )
    backend.check(ray_cluster_spec)
    request = _Request(config, num_gpus, lease, backend, create == "if_missing", ray_cluster_spec or {})
    deadline = time.monotonic() + busy_wait_s
    while True:
        try:
            return request.choose() if ray_cluster == AUTO else request.select(ray_cluster)
        except RayClusterBusyError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(_BUSY_POLL_S)


@dataclass(frozen=True)
class _Request:
    """What was asked for, to be tried more than once."""

    config: ArcadiaConfig
    num_gpus: int
    lease: str
    backend: RayBackend
    create: bool
    spec: Mapping[str, Any]

    def select(self, ray_cluster: int | str) -> RayConnection:
        """The one of that index or name, or one made where it is missing."""
        if not self.config.ray_clusters and self.create and self.backend.may_create(None):
            return self._made(0, None)
        index, cluster = self.config.select(ray_cluster)
        if self.create and self.backend.created_before(self.lease, cluster):
            return self._made(index, cluster)
        try:
            return self._usable(index, cluster)
        except RayClusterUnreachableError:
            if not self.create or not self.backend.may_create(cluster):
                raise
        return self._made(index, cluster)

    def choose(self) -> RayConnection:
        """The fitting one with the most free GPUs, or one made where none fits."""
        if self.create and self.backend.created_before(self.lease, None):
            return self._made(0, None)
        creatable = self.create and self.backend.may_create(None)
        if not creatable:
            self.config.select(0)  # an empty list has one message
        fitting: list[RayConnection] = []
        errors: list[ArcadiaError] = []
        for index, cluster in enumerate(self.config.ray_clusters):
            try:
                fitting.append(self._usable(index, cluster))
            except RayClusterError as error:
                errors.append(error)
        if fitting:
            return max(fitting, key=lambda connection: connection.gpus_free)
        if creatable:
            return self._made(0, None)
        kind = RayClusterBusyError if any(error.retryable for error in errors) else RayClusterUnfitError
        raise kind(
            f"No Ray cluster of arcadia-config can take a worker of {self.num_gpus} GPUs. "
            + " ".join(error.what for error in errors),
            what_to_do=errors[0].what_to_do,
        )

    def _made(self, index: int, cluster: RayCluster | None) -> RayConnection:
        made = self.backend.create(self.lease, cluster, self.num_gpus, self.spec)
        return self._usable(index, made, created=True)

    def _usable(self, index: int, cluster: RayCluster, *, created: bool = False) -> RayConnection:
        if not created:
            # Before it is looked at: from here on its maker's teardown leaves it alone.
            self.backend.use(self.lease, cluster)
        facts = asyncio.run(self.backend.dashboard(cluster.dashboard_url).facts())
        require(cluster.name, self._findings(facts))
        if not created and _refuses(cluster):
            raise RayClusterUnreachableError(
                f"Nothing listens at headAddress {cluster.head_address} of Ray cluster {cluster.name}, "
                f"though its dashboard {cluster.dashboard_url} answers.",
                what_to_do="Correct headAddress: it is the head's GCS port, 6379 by default.",
            )
        return RayConnection(
            index=index,
            name=cluster.name,
            address=cluster.head_address,
            dashboard_url=cluster.dashboard_url,
            ray_version=facts.ray_version,
            python_version=facts.python_version,
            gpus_total=facts.gpus_total,
            gpus_free=facts.gpus_free,
            created=created,
        )

    def _findings(self, facts: ClusterFacts) -> list[Finding]:
        if not any(node.alive for node in facts.nodes):
            # A head answers some seconds before it is a node of its own cluster.
            what_to_do = "Wait until its head has come up, or see why none of its nodes is alive."
            return [Finding("none of its nodes is up.", what_to_do, passing=True)]
        cluster = Versions(facts.ray_version, facts.python_version)
        return check_cluster(
            cluster, self.backend.versions(), facts.gpus_total, facts.gpus_free, self.num_gpus
        )


def _refuses(cluster: RayCluster) -> bool:
    """Whether the head's host itself says that nothing listens there; silence proves nothing."""

    async def connect() -> bool:
        host, _, port = cluster.head_address.rpartition(":")
        try:
            opening = asyncio.open_connection(host.strip("[]"), int(port))
            _, writer = await asyncio.wait_for(opening, timeout=1.0)
        except ConnectionRefusedError:
            return True
        except (OSError, asyncio.TimeoutError):
            return False
        writer.close()
        return False

    return asyncio.run(connect())
