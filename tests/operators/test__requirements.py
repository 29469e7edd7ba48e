"""A task that was marked instead of run returned nothing: what comes after it says so."""

from __future__ import annotations

from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException

from airflow_arcadia.lease import Lease
from airflow_arcadia.lease_store import LeaseStore
from airflow_arcadia.operators.batch import ArcadiaBatchInferenceOperator
from airflow_arcadia.operators.ray_cluster import ArcadiaProvisionRayClusterOperator
from airflow_arcadia.operators.worker import ArcadiaLaunchWorkerOperator, ArcadiaTeardownWorkerOperator
from airflow_arcadia.processes import find_marked, mark, spawn
from airflow_arcadia.sensors.worker import ArcadiaModelReadySensor
from tests.airflow_context import make_context, set_connection


@pytest.fixture(autouse=True)
def _connection(monkeypatch: pytest.MonkeyPatch, store: LeaseStore) -> None:
    set_connection(monkeypatch, arcadia_config_yaml="rayClusters: []", state_dir=str(store.root))


@pytest.mark.parametrize("missing", [None, "None", ""])
@pytest.mark.parametrize(
    "operator",
    [
        lambda lease: ArcadiaProvisionRayClusterOperator(task_id="t", lease=lease),
        lambda lease: ArcadiaLaunchWorkerOperator(task_id="t", lease=lease, model="org/m"),
        lambda lease: ArcadiaTeardownWorkerOperator(task_id="t", lease=lease),
    ],
)
def test_a_missing_lease_is_named_and_what_to_do(operator: Any, missing: Any):
    with pytest.raises(
        AirflowFailException, match=r"got no lease: .* marked success.*Clear the run from its"
    ):
        operator(missing).execute(make_context())


@pytest.mark.parametrize("missing", [None, "None", "", [None]])
@pytest.mark.parametrize("mode", ["poke", "reschedule", "deferrable"])
def test_a_missing_worker_is_named_by_the_sensor(missing: Any, mode: str):
    deferrable = mode == "deferrable"
    sensor = ArcadiaModelReadySensor(
        task_id="t", worker=missing, mode="poke" if deferrable else mode, deferrable=deferrable
    )
    with pytest.raises(AirflowFailException, match=r"got no worker .*Clear the run from its reserve"):
        sensor.execute(make_context())


@pytest.mark.parametrize("missing", [None, "None", "", [None]])
@pytest.mark.parametrize("run_in", ["task", "worker"])
def test_a_missing_worker_is_named_by_the_batch(missing: Any, run_in: str):
    batch = ArcadiaBatchInferenceOperator(task_id="t", worker=missing, input="i", output="o", run_in=run_in)
    with pytest.raises(AirflowFailException, match=r"got no worker .*Clear the run from its reserve"):
        batch.execute(make_context())


def test_the_teardown_finds_the_lease_of_a_reserve_task_that_was_marked(store: LeaseStore, lease: Lease):
    spawn(["/bin/sleep", "600"], env=mark(lease.name, "worker/w"), log_path=store.directory(lease.name) / "l")
    operator = ArcadiaTeardownWorkerOperator(task_id="t", lease=None, group="worker", grace=5)  # type: ignore[arg-type]
    operator.execute(make_context(run_id=lease.identity.run_id))
    assert find_marked(lease.name) == []
    assert not (store.root / lease.name).exists()
