"""The worker's operators: what is refused before anything starts, retries, and the teardown."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException

from airflow_arcadia.exceptions import ArcadiaConfigError, LeaseError
from airflow_arcadia.launchers.arcadia_worker.settings import WorkerResourceSettings
from airflow_arcadia.launchers.pod.settings import PodSettings
from airflow_arcadia.lease import Lease, Owned
from airflow_arcadia.lease_store import LeaseStore
from airflow_arcadia.operators._launcher import LaunchRequest
from airflow_arcadia.operators.worker import (
    ArcadiaLaunchWorkerOperator,
    ArcadiaReserveWorkerOperator,
    ArcadiaTeardownWorkerOperator,
)
from airflow_arcadia.processes import find_marked
from tests.airflow_context import make_context, set_connection


@pytest.fixture(autouse=True)
def _connection(monkeypatch: pytest.MonkeyPatch, store: LeaseStore, worker_python: str) -> None:
    set_connection(
        monkeypatch,
        arcadia_config_yaml="rayClusters: []",
        state_dir=str(store.root),
        worker_python=worker_python,
    )


def launch(lease: Lease, **kwargs) -> dict:
    kwargs.setdefault("model", "org/model")
    return ArcadiaLaunchWorkerOperator(task_id="launch", lease=lease.name, **kwargs).execute(make_context())


def test_reserving_starts_nothing_and_a_retry_reserves_the_same(store: LeaseStore):
    operator = ArcadiaReserveWorkerOperator(task_id="reserve", group="qwen", lease_duration=60)
    name = operator.execute(make_context())
    assert operator.execute(make_context()) == name
    assert store.names() == [name]
    lease = store.read(name)
    assert lease is not None
    assert (lease.owned, lease.duration_s, lease.identity.group) == ((), 60, "qwen")
    assert operator.execute(make_context(run_id="manual__2")) != name


LITERALS: list[tuple[dict[str, Any], str]] = [
    ({"num_gpus": "two"}, "NUMBER_GPUS is 'two'"),
    ({"num_gpus": 0}, "NUMBER_GPUS is 0"),
    ({"num_gpus": -2}, "NUMBER_GPUS is -2"),
    ({"num_gpus": ""}, "NUMBER_GPUS is ''"),
    ({"launcher": "ship"}, "launcher is 'ship'. Use 'process', 'pod' or 'custom_resource'"),
    ({"port": 70000}, "port is 70000"),
    ({"startup_timeout": 0}, "startup_timeout is 0. Set it to above 0"),
    ({"engine": {"max_num_seqs": "many"}}, "engine.max_num_seqs is 'many', not a whole number"),
    ({"engine": {"gpu_memory_utilization": 1.5}}, "engine.gpu_memory_utilization is 1.5"),
    ({"engine": {"trust_remote_code": "perhaps"}}, "engine.trust_remote_code is 'perhaps'"),
    ({"engine": {"drain_seconds": [30]}}, "engine.drain_seconds is a list, not a number"),
    ({"engine": {"max_num_seq": 8}}, "Did you mean 'max_num_seqs'"),
    ({"pod": {"image_pull_secrets": "regcred"}}, "pod.image_pull_secrets is 'regcred', not a list"),
    ({"pod": {"imge": "worker:1"}}, "Did you mean 'image'"),
    ({"pod": {"drain_seconds": "30"}}, "engine={'drain_seconds'"),
    ({"pod": {"startup_timeout": 60}}, "Give startup_timeout to the group or the operator itself"),
    ({"custom_resource": {"existing": "perhaps"}}, "custom_resource.existing is 'perhaps'"),
    ({"additional_envs": "A=1"}, "additional_envs is 'A=1', not a mapping"),
]


@pytest.mark.parametrize(("wrong", "said"), LITERALS)
def test_a_literal_that_is_not_valid_is_an_error_of_the_dag(wrong: dict[str, Any], said: str):
    with pytest.raises(ArcadiaConfigError) as error:
        ArcadiaLaunchWorkerOperator(task_id="launch", lease="l", **{"model": "m", **wrong})
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("wrong", "said"), [case for case in LITERALS if not {"pod", "custom_resource"} & case[0].keys()]
)
def test_what_a_template_renders_to_is_validated_before_anything_starts(
    lease: Lease, wrong: dict[str, Any], said: str
):
    operator = ArcadiaLaunchWorkerOperator(task_id="launch", lease=lease.name, model="org/model")
    for name, value in wrong.items():
        setattr(operator, name, value)
    with pytest.raises(AirflowFailException) as error:
        operator.execute(make_context())
    assert said in str(error.value)
    assert find_marked(lease.name) == []


def test_values_rendered_as_text_reach_the_worker_typed(lease: Lease):
    operator = ArcadiaLaunchWorkerOperator(
        task_id="launch",
        lease=lease.name,
        model="{{ params.model }}",
        num_gpus="{{ params.gpus }}",
        port="{{ params.port }}",
        startup_timeout="{{ params.timeout }}",
        engine={
            "max_num_seqs": "{{ params.seqs }}",
            "max_model_len": "{{ params.len }}",
            "gpu_memory_utilization": "{{ params.share }}",
            "trust_remote_code": "{{ params.trust }}",
            "drain_seconds": "{{ params.drain }}",
            "system_args": "{{ params.args }}",
        },
    )
    params = {"model": "org/m", "gpus": 2, "port": 0, "timeout": 60, "seqs": 8, "len": None, "share": 0.5}
    params |= {"trust": False, "drain": 7, "args": "--seed 1"}
    operator.render_template_fields({"params": params})  # type: ignore[arg-type]
    request = LaunchRequest.of(operator)
    spec = request.worker_spec(None, controller_address=None, drain_seconds=10.0)
    assert (request.port, request.startup_timeout) == (0, 60.0)
    assert (spec.model, spec.num_gpus, spec.max_num_seqs, spec.max_model_len) == ("org/m", 2, 8, None)
    assert (spec.gpu_memory_utilization, spec.trust_remote_code, spec.drain_seconds) == (0.5, False, 7.0)
    assert spec.system_args == ("--seed", "1")


@pytest.mark.parametrize("as_json", [False, True], ids=["values", "the whole mapping"])
def test_pod_and_custom_resource_rendered_as_text_are_read_typed(as_json: bool):
    pod = {
        "image": "{{ params.image }}",
        "run_as_user": "{{ params.user }}",
        "tolerations": "{{ params.gpu | tojson }}",
    }
    resource = {"existing": "{{ params.existing }}", "name": "w", "ray_cluster_index": "{{ params.index }}"}
    operator = ArcadiaLaunchWorkerOperator(
        task_id="launch",
        lease="l",
        model="m",
        pod="{{ params.pod | tojson }}" if as_json else pod,  # type: ignore[arg-type]
        custom_resource="{{ params.resource | tojson }}" if as_json else resource,  # type: ignore[arg-type]
    )
    params: dict[str, Any] = {"image": "worker:1", "user": 1001, "gpu": [{"key": "gpu"}]}
    params |= {"existing": False, "index": 1}
    params["pod"] = {"image": "worker:1", "run_as_user": 1001, "tolerations": [{"key": "gpu"}]}
    params["resource"] = {"existing": False, "name": "w", "ray_cluster_index": 1}
    operator.render_template_fields({"params": params})  # type: ignore[arg-type]
    settings = PodSettings.parse(operator.pod)
    assert (settings.image, settings.run_as_user, settings.tolerations) == (
        "worker:1",
        1001,
        [{"key": "gpu"}],
    )
    worker = WorkerResourceSettings.parse(operator.custom_resource)
    assert (worker.existing, worker.kept, worker.name, worker.ray_cluster_index) == (False, False, "w", 1)
    request = LaunchRequest.of(operator)
    assert (request.pod or {})["image"] == "worker:1"


def test_a_literal_duration_that_is_not_valid_is_an_error_of_the_dag():
    with pytest.raises(ArcadiaConfigError, match="lease_duration is 'long'"):
        ArcadiaReserveWorkerOperator(task_id="reserve", lease_duration="long")
    with pytest.raises(ArcadiaConfigError, match=r"grace is -1\.0\. Set it to at least 0"):
        ArcadiaTeardownWorkerOperator(task_id="teardown", lease="l", grace=-1.0)
    ArcadiaReserveWorkerOperator(task_id="reserve", lease_duration="{{ params.lease }}")
    teardown = ArcadiaTeardownWorkerOperator(task_id="teardown", lease="l", grace="30")  # type: ignore[arg-type]
    assert teardown.grace == 30.0


def test_an_engine_that_says_nothing_about_it_drains_as_its_launcher_does():
    spec = LaunchRequest(lease="l", model="m").worker_spec(None, controller_address=None, drain_seconds=30.0)
    assert spec.drain_seconds == 30.0


def test_a_model_path_without_config_json_is_refused(lease: Lease, tmp_path: Path):
    with pytest.raises(AirflowFailException, match=r"no config\.json"):
        launch(lease, model=str(tmp_path))
    assert find_marked(lease.name) == []


def test_heads_that_cannot_be_divided_name_the_sizes_that_would_do(lease: Lease, tmp_path: Path):
    (tmp_path / "config.json").write_text('{"num_attention_heads": 9, "num_key_value_heads": 3}')
    with pytest.raises(AirflowFailException, match="Set NUMBER_GPUS to 1, 3 or 9"):
        launch(lease, model=str(tmp_path), num_gpus=2)


def test_more_than_one_gpu_without_a_ray_cluster_is_refused(lease: Lease):
    with pytest.raises(AirflowFailException, match="has no Ray cluster"):
        launch(lease, num_gpus=2)


def test_a_port_that_is_taken_is_named_with_its_holder(lease: Lease):
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(Exception, match=rf"127\.0\.0\.1:{port}.*in use, held by process \d+"):
            launch(lease, port=port)
    assert find_marked(lease.name) == []


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"launcher": "pod"}, "no launcher 'pod' for connection"),
        ({"arcadia_conn_id": "nowhere"}, "no connection 'nowhere'"),
    ],
)
def test_a_parameter_that_makes_no_sense_is_named(lease: Lease, wrong: dict, said: str):
    with pytest.raises(AirflowFailException, match=said):
        launch(lease, **wrong)


def test_a_lease_that_was_torn_down_cannot_launch(lease: Lease, store: LeaseStore):
    store.remove(lease.name)
    with pytest.raises(LeaseError, match="does not exist"):
        launch(lease)


def test_a_worker_python_that_is_not_there_is_named(
    lease: Lease, store: LeaseStore, monkeypatch: pytest.MonkeyPatch
):
    set_connection(
        monkeypatch,
        arcadia_config_yaml="rayClusters: []",
        state_dir=str(store.root),
        worker_python="/nowhere/python",
    )
    with pytest.raises(Exception, match="/nowhere/python cannot be started"):
        launch(lease)


def test_secrets_are_in_files_of_the_lease_and_nowhere_else(
    lease: Lease, store: LeaseStore, monkeypatch: pytest.MonkeyPatch, worker_python: str
):
    set_connection(
        monkeypatch,
        password="the-api-key",
        ray_token="the-ray-token",
        arcadia_config_yaml="rayClusters: []",
        state_dir=str(store.root),
        worker_python=worker_python,
    )
    handle = launch(lease)
    for process in find_marked(lease.name):
        assert "the-api-key" not in " ".join(process.cmdline()) + json.dumps(process.environ())
        assert "the-ray-token" not in " ".join(process.cmdline()) + json.dumps(process.environ())
    assert "the-api-key" not in json.dumps(handle)
    key = store.directory(lease.name) / "api-key"
    assert (key.read_text(), key.stat().st_mode & 0o777) == ("the-api-key", 0o600)
    ArcadiaTeardownWorkerOperator(task_id="teardown", lease=lease.name).execute(make_context())
    assert not key.exists()


def test_a_retry_finds_the_worker_it_started(lease: Lease, store: LeaseStore):
    first = launch(lease)
    assert launch(lease) == first
    # The earlier attempt was killed before it wrote down the pid: found by its mark.
    forgotten = {k: v for k, v in first["where"].items() if k not in {"pid", "started_at", "url"}}
    store.update(lease.name, lambda held: held.record(Owned("worker", lease.name, "process", forgotten)))
    again = launch(lease)
    assert (again["where"]["pid"], again["url"]) == (first["where"]["pid"], first["url"])


def test_a_teardown_that_is_killed_before_it_began_releases_the_lease(lease: Lease, store: LeaseStore):
    ArcadiaTeardownWorkerOperator(task_id="teardown", lease=lease.name).on_kill()
    held = store.read(lease.name)
    assert held is not None
    assert held.released
    store.remove(lease.name)
    ArcadiaTeardownWorkerOperator(task_id="teardown", lease=lease.name).on_kill()
    ArcadiaTeardownWorkerOperator(task_id="teardown", lease="").on_kill()


def test_teardown_is_right_when_nothing_was_launched_and_when_called_twice(lease: Lease, store: LeaseStore):
    operator = ArcadiaTeardownWorkerOperator(task_id="teardown", lease=lease.name)
    operator.execute(make_context())
    operator.execute(make_context())
    assert store.names() == []


def test_teardown_ends_the_worker_and_fails_the_run_when_its_scope_failed(lease: Lease, store: LeaseStore):
    from airflow.sdk import DAG

    launch(lease)
    assert find_marked(lease.name)
    with DAG("dag", schedule=None):
        work = ArcadiaReserveWorkerOperator(task_id="answer")
        operator = ArcadiaTeardownWorkerOperator(task_id="teardown", lease=lease.name, grace=10)
        work >> operator
    began = time.monotonic()
    with pytest.raises(AirflowFailException, match=r"nothing is left running; .* answer failed"):
        operator.execute(make_context(answer="failed"))
    assert time.monotonic() - began < 10
    assert find_marked(lease.name) == []
    assert store.names() == []
