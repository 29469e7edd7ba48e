"""Which Ray cluster of arcadia-config a worker gets, by what each says of itself."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from airflow_arcadia.config import ArcadiaConfig, RayCluster
from airflow_arcadia.exceptions import RayClusterBusyError, RayClusterUnfitError, RayClusterUnreachableError
from airflow_arcadia.preflight import Versions
from airflow_arcadia.ray_cluster.provision import provision
from airflow_arcadia.ray_dashboard import ClusterFacts, RayNode


class Told:
    """A dashboard that tells of these nodes; of none: it does not answer."""

    def __init__(self, nodes: tuple[RayNode, ...] | None) -> None:
        self.nodes = nodes

    async def facts(self) -> ClusterFacts:
        if self.nodes is None:
            raise RayClusterUnreachableError("It does not answer.", what_to_do="Wait.")
        return ClusterFacts("2.60.0", "3.11.7", self.nodes)


class FakeBackend:
    """Clusters by what they have: (GPUs, used) of each node."""

    def __init__(self, **clusters: list[tuple[float, float]] | None) -> None:
        self.clusters = clusters
        self.made: list[str] = []

    def versions(self) -> Versions | None:
        return None

    def dashboard(self, url: str) -> Any:
        found = self.clusters[url.removeprefix("http://").partition(".")[0]]
        nodes = [RayNode(str(i), "h", i == 0, True, *gpus) for i, gpus in enumerate(found or ())]
        return Told(None if found is None else tuple(nodes))

    def check(self, spec: Mapping[str, Any] | None) -> None:
        pass

    def may_create(self, cluster: RayCluster | None) -> bool:
        return True

    def use(self, lease: str, cluster: RayCluster) -> None:
        pass

    def created_before(self, lease: str, cluster: RayCluster | None) -> bool:
        return bool(self.made)

    def create(
        self, lease: str, cluster: RayCluster | None, num_gpus: int, spec: Mapping[str, Any]
    ) -> RayCluster:
        self.made.append(lease)
        self.clusters["made"] = [(num_gpus, 0)]
        return RayCluster("made", "made.test:1", dashboard_host="http://made.test:1")


@pytest.fixture
def gcs() -> Iterator[int]:
    """A port at which something listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def choose(backend: FakeBackend, gcs: int, ray_cluster: int | str = "auto", **more: Any) -> str:
    """Name of the chosen one of ``backend``'s clusters, all of which arcadia-config lists."""
    listed = [
        RayCluster(name, f"127.0.0.1:{gcs}", dashboard_host=f"http://{name}.test:1")
        for name in backend.clusters
        if name != "made"
    ]
    config = ArcadiaConfig(ray_clusters=tuple(listed))
    return provision(config, ray_cluster, 2, lease="l", backend=backend, **more).name


def test_auto_takes_the_one_with_the_most_free_gpus_of_all(gcs: int):
    backend = FakeBackend(
        away=None, full=[(8, 8)], small=[(2, 0)], spread=[(0, 0), (4, 1), (4, 2)], large=[(8, 4)]
    )
    assert choose(backend, gcs) == "spread"


def test_auto_makes_one_only_where_none_fits_and_only_if_asked(gcs: int):
    full = {"away": None, "full": [(8.0, 7.0)]}
    with pytest.raises(RayClusterBusyError, match=r"It does not answer.*1 of its 8 GPUs are free"):
        choose(FakeBackend(**full), gcs)
    backend = FakeBackend(**full)
    assert choose(backend, gcs, create="if_missing") == "made"
    fits = FakeBackend(**full, fits=[(2.0, 0.0)])
    assert choose(fits, gcs, create="if_missing") == "fits"
    assert (backend.made, fits.made) == (["l"], [])


def test_one_that_was_made_is_found_again_even_where_another_has_become_free(gcs: int):
    backend = FakeBackend(busy=[(2, 2)])
    assert choose(backend, gcs, create="if_missing") == "made"
    backend.clusters["busy"] = [(2, 0)]
    assert choose(backend, gcs, create="if_missing") == "made"


def test_a_named_one_that_is_there_is_never_replaced(gcs: int):
    backend = FakeBackend(small=[(1, 0)])
    with pytest.raises(RayClusterUnfitError, match="it has 1 GPUs, NUMBER_GPUS asks for 2"):
        choose(backend, gcs, "small", create="if_missing")
    assert backend.made == []
    assert choose(FakeBackend(away=None), gcs, "away", create="if_missing") == "made"


def test_a_head_that_has_no_node_yet_is_waited_for(gcs: int):
    with pytest.raises(RayClusterBusyError, match="none of its nodes is up"):
        choose(FakeBackend(coming=[]), gcs, "coming", create="if_missing")
