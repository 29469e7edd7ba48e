"""Provisioning through its operator: each mistake is named before anything is started."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
from airflow.sdk.exceptions import AirflowFailException

from airflow_arcadia.exceptions import RayClusterUnreachableError
from airflow_arcadia.lease import Lease
from airflow_arcadia.lease_store import LeaseStore
from airflow_arcadia.operators.ray_cluster import ArcadiaProvisionRayClusterOperator
from airflow_arcadia.processes import find_marked
from airflow_arcadia.sensors.ray_cluster import ArcadiaRayClusterSensor
from tests.airflow_context import make_context, set_connection
from tests.ray_cluster.real_ray import RealRay, clusters_yaml, real_ray, unused_cluster

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def head(worker_python: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealRay]:
    folder = tmp_path_factory.mktemp("ray")
    (folder / "token").write_text("a-token-of-the-tests")
    with real_ray(folder, worker_python, token_file=str(folder / "token")) as running:
        yield running


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch, store: LeaseStore, worker_python: str):
    def connect(yaml: str, **extra) -> None:
        settings = {"state_dir": str(store.root), "worker_python": worker_python, **extra}
        set_connection(monkeypatch, arcadia_config_yaml=yaml, **settings)

    return connect


def provision(lease: Lease, **kwargs) -> dict | None:
    kwargs.setdefault("num_gpus", 2)
    operator = ArcadiaProvisionRayClusterOperator(task_id="provision", lease=lease.name, **kwargs)
    return operator.execute(make_context())


def test_a_usable_cluster_is_returned_as_json(connect, head: RealRay, lease: Lease):
    connect(head.yaml, ray_token="a-token-of-the-tests")
    connection = provision(lease, ray_cluster="local")
    assert connection is not None
    assert (connection["gpus_free"], connection["address"]) == (2.0, head.cluster.head_address)


def test_one_gpu_needs_no_cluster(connect, lease: Lease):
    connect("rayClusters: []")
    assert provision(lease, num_gpus=1) is None


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"ray_cluster": "b100"}, "no Ray cluster named 'b100'; it has 0: local"),
        ({"ray_cluster": 3}, "RAY_CLUSTER_INDEX 3 is out of range; arcadia-config has 0: local"),
        ({"num_gpus": 3}, "it has 2 GPUs, NUMBER_GPUS asks for 3"),
    ],
)
def test_a_request_that_cannot_work_is_refused_for_good(
    connect, head: RealRay, lease: Lease, kwargs: dict, said: str
):
    connect(head.yaml, ray_token="a-token-of-the-tests")
    with pytest.raises(AirflowFailException, match=said):
        provision(lease, **kwargs)
    assert find_marked(lease.name) == []


def test_an_empty_list_of_clusters_says_so(connect, lease: Lease):
    connect("rayClusters: []")
    with pytest.raises(AirflowFailException, match="rayClusters is empty"):
        provision(lease)


def test_a_wrong_token_is_refused_for_good(connect, head: RealRay, lease: Lease):
    connect(head.yaml, ray_token="wrong")
    with pytest.raises(AirflowFailException, match="the token sent is wrong"):
        provision(lease)


@pytest.mark.parametrize("versions", ["2.59.0 3.11.7", "2.60.0 3.10.1"])
def test_another_ray_or_python_version_is_refused_for_good(
    connect, head: RealRay, lease: Lease, tmp_path: Path, versions: str
):
    # Another environment cannot be had in a test: its Python's answer stands for it.
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho {versions}\n")
    python.chmod(0o755)
    connect(head.yaml, ray_token="a-token-of-the-tests", worker_python=str(python))
    with pytest.raises(
        AirflowFailException, match=versions.split(" ", maxsplit=1)[0 if "2.59" in versions else 1]
    ):
        provision(lease)


def test_nothing_at_the_address_may_be_retried(connect, lease: Lease):
    cluster = unused_cluster()
    connect(clusters_yaml(cluster))
    with pytest.raises(RayClusterUnreachableError, match=cluster.dashboard_url):
        provision(lease)


def test_the_model_is_checked_before_the_cluster_is_asked(connect, lease: Lease, tmp_path: Path):
    (tmp_path / "config.json").write_text('{"num_attention_heads": 9, "num_key_value_heads": 3}')
    connect(clusters_yaml(unused_cluster()))
    with pytest.raises(AirflowFailException, match="1, 3 or 9"):
        provision(lease, model=str(tmp_path))


def test_the_sensor_waits_for_what_may_pass_and_fails_at_once_for_the_rest(
    connect, head: RealRay, lease: Lease
):
    away = dataclasses.replace(unused_cluster("away"))
    connect(clusters_yaml(away, head.cluster), ray_token="a-token-of-the-tests")

    def sensor(**kwargs) -> ArcadiaRayClusterSensor:
        return ArcadiaRayClusterSensor(task_id="wait", lease=lease.name, num_gpus=2, **kwargs)

    assert not sensor(ray_cluster="away").poke(make_context()).is_done
    there = sensor(ray_cluster="local").poke(make_context())
    assert there.is_done
    assert there.xcom_value["name"] == "local"
    with pytest.raises(AirflowFailException, match="no Ray cluster named"):
        sensor(ray_cluster="nowhere").poke(make_context())
