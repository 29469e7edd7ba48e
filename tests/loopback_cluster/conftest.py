"""One cluster for the suite: the loopback pair, or the one of ``ARCADIA_TEST_KUBECONFIG``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.loopback_cluster.cluster import (
    PYTHON_IMAGE,
    WORKER_IMAGE,
    Cluster,
    Loopback,
    loopback_images,
    named_cluster,
    write_kubeconfig,
)


@pytest.fixture(scope="session")
def stand_ins_are_removed() -> Iterator[None]:
    """Remove what stand-ins defined in a named cluster, at the end of the session."""
    yield
    if (named := named_cluster()) is not None:
        named.remove_definitions()


@pytest.fixture
def cluster(
    request: pytest.FixtureRequest, tmp_path: Path, worker_python: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Cluster]:
    """A cluster, and the Airflow connection ``kubernetes_default`` to it."""
    named = named_cluster()
    if named is not None:
        request.getfixturevalue("stand_ins_are_removed")
        named.make_namespace()
        monkeypatch.setenv("AIRFLOW_CONN_KUBERNETES_DEFAULT", json.dumps(named.airflow_connection))
        try:
            yield named
        finally:
            named.close()
            named.remove_namespace()
        return
    loopback = Loopback(tmp_path / "cluster", loopback_images(worker_python))
    loopback.start()
    kubeconfig = write_kubeconfig(tmp_path / "kubeconfig", loopback.url)
    made = Cluster(kubeconfig, "tests", WORKER_IMAGE, PYTHON_IMAGE, loopback)
    # Many tests take a right away, and each waits so long until that is believed.
    monkeypatch.setattr("airflow_arcadia.kubernetes.rights.PATIENCE_S", 0.2)
    monkeypatch.setenv("AIRFLOW_CONN_KUBERNETES_DEFAULT", json.dumps(made.airflow_connection))
    try:
        yield made
    finally:
        loopback.stop()


@pytest.fixture
def loopback(cluster: Cluster) -> Loopback:
    """What only the loopback pair can do: lose a node, take rights away, restart the API server."""
    if cluster.loopback is None:
        pytest.skip("a real cluster cannot be told to do this")
    return cluster.loopback
