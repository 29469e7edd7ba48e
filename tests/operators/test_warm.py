"""Warm workers through the operators: equal runs share one worker, and it outlives them; real processes."""

from __future__ import annotations

import dataclasses
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowFailException

from airflow_arcadia.exceptions import ArcadiaConfigError
from airflow_arcadia.hooks.arcadia import ArcadiaHook
from airflow_arcadia.lease import Lease
from airflow_arcadia.lease_store import LeaseStore
from airflow_arcadia.operators._launcher import LaunchRequest
from airflow_arcadia.operators._warm import _CLUSTER, _LAUNCH, warm_request
from airflow_arcadia.operators.ray_cluster import ArcadiaProvisionRayClusterOperator
from airflow_arcadia.operators.worker import (
    ArcadiaLaunchWorkerOperator,
    ArcadiaReserveWorkerOperator,
    ArcadiaTeardownWorkerOperator,
    WarmWorkerParameters,
)
from airflow_arcadia.ports import free_port
from airflow_arcadia.processes import find_marked
from airflow_arcadia.reap import _of_run, reap_connection
from airflow_arcadia.sensors.worker import ArcadiaModelReadySensor
from airflow_arcadia.task_groups.worker import ArcadiaWorkerGroup
from airflow_arcadia.warm import Request
from airflow_arcadia.worker import RayConnection, WorkerHandle
from tests.airflow_context import make_context, set_connection
from tests.conftest import ROOT, wait_for

STAND_IN = ROOT / "tests" / "lifecycle" / "stand_in"
RAY = RayConnection(0, "c", "head:6379", "http://head:8265", "2.60.0", "3.11.7", 4, 4)


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: LeaseStore) -> Iterator[None]:
    """The connection: workers under the real supervisor, with a stand-in for vLLM's server."""
    python = tmp_path / "worker-python"
    python.write_text(f'#!/bin/sh\nexport PYTHONPATH={STAND_IN}:{ROOT}\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    set_connection(
        monkeypatch,
        arcadia_config_yaml="rayClusters: []",
        state_dir=str(store.root),
        worker_python=str(python),
    )
    yield
    hook = ArcadiaHook()
    for name in store.names():
        hook.end(name, grace_s=0)


@dataclass
class Run:
    """One run of a DAG with one group that keeps its worker warm."""

    run_id: str
    worker: Mapping[str, Any] = field(default_factory=lambda: {"model": "org/tiny"})
    keep_warm: Any = "10m"
    lease: str = ""
    handle: dict[str, Any] = field(default_factory=dict)

    def reserve(self) -> str:
        operator = ArcadiaReserveWorkerOperator(
            task_id="reserve", group="w", keep_warm=self.keep_warm, worker=self.worker
        )
        self.lease = operator.execute(make_context(self.run_id))
        return self.lease

    def provision(self, **kwargs: Any) -> dict[str, Any] | None:
        operator = ArcadiaProvisionRayClusterOperator(task_id="provision", lease=self.lease, **kwargs)
        return operator.execute(make_context(self.run_id))

    def launch(self) -> dict[str, Any]:
        operator = ArcadiaLaunchWorkerOperator(task_id="launch", lease=self.lease, **self.worker)
        self.handle = operator.execute(make_context(self.run_id))
        return self.handle

    def wait(self) -> None:
        sensor = ArcadiaModelReadySensor(
            task_id="ready", worker=self.handle, startup_timeout=60, poll_interval=0.2, deferrable=False
        )
        sensor.execute(make_context(self.run_id))

    def teardown(self, **states: str) -> None:
        ArcadiaHook().end(self.lease, grace_s=5)

    def all(self) -> dict[str, Any]:
        """Everything until its model is ready."""
        self.reserve()
        self.provision()
        self.launch()
        self.wait()
        return self.handle


def warm_lease(store: LeaseStore) -> Lease:
    (found,) = store.warm()
    return found


@pytest.mark.usefixtures("stand_in")
def test_the_next_equal_run_finds_the_worker_ready_and_another_gets_its_own(store: LeaseStore):
    first, second, other = Run("r1"), Run("r2"), Run("r3", {"model": "org/tiny", "served_model_name": "x"})
    began = first.all()
    first.teardown()
    assert first.lease not in store.names()
    assert len(store.names()) == 1, "only the warm worker's lease is left"
    adopted = second.all()
    assert (adopted["where"]["pid"], adopted["url"]) == (began["where"]["pid"], began["url"])
    assert (adopted["run_lease"], adopted["lease"]) == (second.lease, began["lease"])
    environ = psutil.Process(began["where"]["pid"]).environ()
    assert environ["ARCADIA_IDLE_TIMEOUT"] == "0.0", "its lease alone ends it"
    assert other.all()["where"]["pid"] != began["where"]["pid"]
    for run in (second, other):
        run.teardown()
    assert len(store.warm()) == 2


@pytest.mark.usefixtures("stand_in")
def test_runs_at_the_same_time_share_one_worker_that_stays_until_the_last_is_out(store: LeaseStore):
    runs = [Run(f"r{number}") for number in range(3)]
    threads = [threading.Thread(target=run.all) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len({run.handle["where"]["pid"] for run in runs}) == 1
    for run, users in zip(runs, (2, 1, 0), strict=True):
        run.teardown()
        held = warm_lease(store)
        assert held.warm is not None
        assert len(held.warm.uses) == users
    assert find_marked(warm_lease(store).name)


@pytest.mark.usefixtures("stand_in")
def test_nothing_is_left_once_the_warm_period_is_over(store: LeaseStore):
    run = Run("r1")
    run.all()
    run.teardown()
    name = warm_lease(store).name
    # Its supervisor counts by its own clock: the warm period is made short rather than to have passed.
    store.update(name, lambda held: dataclasses.replace(held, duration_s=0.5, renewed_at=time.time()))
    wait_for(lambda: not find_marked(name), 30, "the supervisor to end the worker")
    wait_for(lambda: store.names() == [], 10, "its lease to be removed")


@pytest.mark.usefixtures("stand_in")
def test_a_run_whose_teardown_never_comes_holds_the_worker_no_longer_than_its_lease(store: LeaseStore):
    killed, second = Run("r1"), Run("r2")
    killed.all()
    second.all()
    name = warm_lease(store).name

    def lapse(held: Lease) -> Lease:
        assert held.warm is not None
        uses = tuple(
            dataclasses.replace(use, renewed_at=use.renewed_at - 9000) if use.user == killed.lease else use
            for use in held.warm.uses
        )
        return dataclasses.replace(held, warm=dataclasses.replace(held.warm, uses=uses))

    store.update(name, lapse)
    second.teardown()
    held = warm_lease(store)
    assert held.warm is not None
    assert held.warm.uses == ()
    assert 500 < held.expires_at - time.time() <= 600


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("healthy", [True, False])
def test_what_ends_a_run_without_its_teardown_keeps_a_healthy_worker_warm(store: LeaseStore, healthy: bool):
    """The listener's clean-up of a run that ``dagrun_timeout`` has ended, and the reaper's."""
    run = Run("r1")
    run.all()
    name = warm_lease(store).name
    if not healthy:
        for process in find_marked(name):
            process.kill()
    report = reap_connection("arcadia_default", lambda _: "failed", grace_s=5, only=_of_run("dag", "r1"))
    assert ([item.name for item in report.reaped], report.errors) == ([run.lease], {})
    assert store.names() == ([name] if healthy else [])
    assert bool(find_marked(name)) is healthy
    again = reap_connection("arcadia_default", lambda _: "failed", grace_s=5)
    assert (again.reaped, again.warm) == ([], [name] if healthy else [])


@pytest.mark.usefixtures("stand_in")
def test_a_worker_that_died_while_it_was_warm_is_replaced(store: LeaseStore):
    first, second = Run("r1"), Run("r2")
    began = first.all()
    first.teardown()
    for process in find_marked(began["lease"]):
        process.kill()
    adopted = second.all()
    assert adopted["lease"] != began["lease"]
    assert [lease.name for lease in store.warm()] == [adopted["lease"]]


@pytest.mark.usefixtures("stand_in")
def test_a_worker_of_a_failed_launch_is_not_kept(store: LeaseStore):
    run = Run("r1", {"model": "org/tiny", "engine": {"extra_args": "--die"}})
    run.reserve()
    run.launch()
    with pytest.raises(AirflowFailException, match="the engine died at its start"):
        run.wait()
    run.teardown()
    assert store.names() == []


@pytest.mark.usefixtures("stand_in")
def test_a_run_that_ends_before_its_launch_leaves_nothing(store: LeaseStore):
    run = Run("r1")
    run.reserve()
    ArcadiaTeardownWorkerOperator(task_id="teardown", lease=run.lease).execute(make_context("r1"))
    assert store.names() == []


@pytest.mark.usefixtures("stand_in")
def test_adopting_asks_no_ray_cluster_for_free_gpus(store: LeaseStore, monkeypatch: pytest.MonkeyPatch):
    """Its GPUs are in use: by the very worker that the run adopts."""
    config = f"rayClusters: [{{name: c, headAddress: '127.0.0.1:{free_port()}'}}]"
    set_connection(monkeypatch, arcadia_config_yaml=config, state_dir=str(store.root))
    worker = {"model": "org/tiny", "num_gpus": 2}
    first, second = Run("r1", worker), Run("r2", worker)
    first.reserve()
    second.reserve()
    with pytest.raises(Exception, match="c"):  # the first one is to launch: it needs the cluster
        first.provision(num_gpus=2)
    name = warm_lease(store).name
    where = {"log": "nowhere"}
    launched = WorkerHandle(name, name, "process", "http://w", "tiny", 2, ray=RAY, where=where)
    ArcadiaHook().warm_workers.record(launched)
    assert second.provision(num_gpus=2) == RAY.to_dict()


def request(hook: ArcadiaHook | None = None, **worker: Any) -> Request:
    return warm_request(hook or ArcadiaHook(), {"model": "org/tiny", **worker})


@pytest.mark.usefixtures("stand_in")
def test_runs_with_the_same_worker_have_the_same_key_however_it_was_written():
    assert request(num_gpus="1", engine={"max_num_seqs": "8"}).key == request(engine={"max_num_seqs": 8}).key
    assert (
        request(engine={"extra_args": "--seed 1"}).key == request(engine={"extra_args": ["--seed", "1"]}).key
    )


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize(
    "other",
    [
        {"model": "org/other"},
        {"served_model_name": "x"},
        {"num_gpus": 2},
        {"engine": {"max_num_seqs": 8}},
        {"additional_envs": {"A": "1"}},
        {"ray_cluster": 1},
        {"create": "if_missing"},
        {"num_workers": 2},
        {"port": 21002},
        {"pod": {"image": "worker:2"}},
    ],
)
def test_another_worker_has_another_key(other: dict[str, Any]):
    assert request(**other).key != request().key


def test_every_key_of_the_public_type_is_taken():
    assert WarmWorkerParameters.__annotations__.keys() == _LAUNCH | _CLUSTER


def test_another_connection_or_api_key_is_another_worker(monkeypatch: pytest.MonkeyPatch):
    keys = set()
    for password, config in (
        (None, "[]"),
        ("a-key", "[]"),
        ("another", "[]"),
        ("a-key", "[{name: c, headAddress: h}]"),
    ):
        set_connection(monkeypatch, password, arcadia_config_yaml=f"rayClusters: {config}")
        keys.add(request().key)
    assert len(keys) == 4


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"keep_warm": "soon"}, "keep_warm is 'soon'"),
        ({"keep_warm": timedelta(days=3)}, "15 seconds to 24 hours"),
        ({"keep_warm": "30m", "worker": {"modle": "m"}}, "Did you mean 'model'"),
        ({"keep_warm": "30m"}, "Give worker="),
        ({"keep_warm": "{{ params.keep }}"}, "Give worker="),
    ],
)
def test_a_literal_that_is_not_valid_is_an_error_of_the_dag(wrong: dict[str, Any], said: str):
    with pytest.raises(ArcadiaConfigError) as error:
        ArcadiaReserveWorkerOperator(task_id="reserve", **wrong)
    assert said in str(error.value)


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize(
    ("keep", "kept"), [("30m", True), (1800, True), ("", False), (None, False), (0, False)]
)
def test_what_templates_render_to_decides_whether_a_worker_is_kept(store: LeaseStore, keep: Any, kept: bool):
    operator = ArcadiaReserveWorkerOperator(
        task_id="reserve",
        group="w",
        keep_warm="{{ params.keep }}",
        worker={"model": "{{ params.model }}", "num_gpus": "{{ params.gpus }}"},
    )
    operator.render_template_fields({"params": {"keep": keep, "model": "org/tiny", "gpus": 1}})  # type: ignore[arg-type]
    operator.execute(make_context("r1"))
    assert [lease.warm.key for lease in store.warm() if lease.warm] == ([request().key] if kept else [])


@pytest.mark.usefixtures("stand_in")
def test_the_group_reserves_what_it_launches(store: LeaseStore):
    with DAG("dag", schedule=None):
        group = ArcadiaWorkerGroup("w", model="org/tiny", num_workers=2, keep_warm=timedelta(minutes=30))
        assert warm_request(ArcadiaHook(), group.reserve.worker).workers == 2
        assert ArcadiaWorkerGroup("v", model="org/tiny").reserve.worker is None
        with pytest.raises(ArcadiaConfigError, match="keep_warm is 'soon'"):
            ArcadiaWorkerGroup("u", model="org/tiny", keep_warm="soon")


@pytest.mark.parametrize(("asked", "got"), [(None, 0.0), (0, 0.0), (60, 600.0), ("1200", 1200.0)])
def test_a_warm_worker_ends_by_its_lease_and_not_because_it_is_idle(asked: Any, got: float):
    asking = LaunchRequest(lease="run", model="m", index=1, engine={"idle_timeout": asked, "max_num_seqs": 8})
    spec = asking.under("warm-m-1", keep_s=600).worker_spec(None, controller_address=None, drain_seconds=1)
    assert (spec.idle_timeout, spec.max_num_seqs, spec.name) == (got, 8, "warm-m-1-1")
