"""Real Ray heads with logical GPUs, for tests."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from airflow_arcadia.config import ArcadiaConfig, RayCluster
from airflow_arcadia.lease import Identity
from airflow_arcadia.lease_store import LeaseStore
from airflow_arcadia.ports import free_port
from airflow_arcadia.ray_cluster import local
from airflow_arcadia.ray_cluster.local import wait_for_head


@dataclass(frozen=True)
class RealRay:
    """A running head.

    :param token_file: file with its token, for one with token authentication.
    """

    cluster: RayCluster
    token_file: str | None = None

    @property
    def config(self) -> ArcadiaConfig:
        """arcadia-config that lists it alone."""
        return ArcadiaConfig(ray_clusters=(self.cluster,))

    @property
    def yaml(self) -> str:
        """The same as text."""
        return clusters_yaml(self.cluster)


def clusters_yaml(*clusters: RayCluster) -> str:
    """arcadia-config of these clusters."""
    rows = [
        {"name": c.name, "headAddress": c.head_address, "dashboardHost": c.dashboard_url} for c in clusters
    ]
    return yaml.safe_dump({"rayClusters": rows})


def unused_cluster(name: str = "local") -> RayCluster:
    """An entry of arcadia-config at whose ports nothing listens."""
    return RayCluster(name, f"127.0.0.1:{free_port()}", dashboard_host=f"http://127.0.0.1:{free_port()}")


@contextlib.contextmanager
def real_ray(
    root: Path, worker_python: str, *, num_gpus: int = 2, token_file: str | None = None
) -> Iterator[RealRay]:
    """A head of its own lease, ended with all it started."""
    store = LeaseStore(root)
    lease = store.reserve(Identity("tests", str(root), "ray"), time.time(), duration_s=3600)
    cluster = unused_cluster()
    try:
        process = local.start_head(
            cluster,
            lease.name,
            store=store,
            num_gpus=num_gpus,
            num_cpus=None,
            worker_python=worker_python,
            ray_token_file=token_file,
        )
        wait_for_head(process, cluster, store.directory(lease.name) / "ray-head.log", token_file)
        yield RealRay(cluster, token_file)
    finally:
        held = store.read(lease.name)
        for item in held.owned if held else ():
            assert local.end_head(item.where, grace_s=10) == []
        store.remove(lease.name)
