"""A worker as Arcadia's own resource, through the operators, a cluster's API and Arcadia's stand-in."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from airflow.sdk.exceptions import AirflowFailException

from airflow_arcadia.exceptions import ArcadiaConfigError, LeaseError, TeardownError
from airflow_arcadia.hooks.arcadia import ArcadiaHook
from airflow_arcadia.launchers.arcadia_worker.launcher import CustomResourceLauncher
from airflow_arcadia.launchers.arcadia_worker.ownership import TAKEN_BY, WorkerInUseError
from airflow_arcadia.launchers.base import Credentials
from airflow_arcadia.operators.worker import ArcadiaLaunchWorkerOperator
from airflow_arcadia.ports import free_port
from airflow_arcadia.worker import RayConnection, WorkerHandle
from tests.airflow_context import make_context
from tests.conftest import wait_for
from tests.kubernetes import arcadia
from tests.kubernetes.arcadia import made_before, made_here, pods, reason, worker
from tests.kubernetes.workers import Run, connect, told_in_time
from tests.loopback_cluster.cluster import Cluster, Loopback


@pytest.fixture
def run(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    connect(monkeypatch, cluster)
    arcadia.start_arcadia(cluster)
    made = Run(cluster)
    made.reserve()
    yield made
    made.teardown(grace=1)
    assert made.objects == []


def launch(run: Run, *, try_number: int = 1, **settings: Any) -> dict[str, Any]:
    given = settings if settings.get("existing") else made_here(**settings)
    return run.launch(try_number=try_number, launcher="custom_resource", custom_resource=given)


def gone(cluster: Cluster, name: str) -> None:
    """Wait until it has no pod: an operator that acts on what it read before may make one more.

    That one has an owner that is gone, or too few replicas, and goes as well.
    """
    wait_for(lambda: pods(cluster, name) == [], 60, f"the pods of Worker {name} to go")


def test_a_worker_is_made_ready_under_its_uid_and_gone_after_the_teardown(run: Run, cluster: Cluster):
    handle = launch(run)
    made = worker(cluster, run.lease)
    assert made is not None
    assert handle["served_model_name"] == made["metadata"]["uid"] == handle["where"]["uid"]
    model = made["spec"]["model"]
    assert handle["model_identity"] == f"{model['namespace']}/{model['name']}"
    envs = {item["name"]: item.get("value") for item in made["spec"]["additionalEnvs"]}
    assert (envs["NUMBER_GPUS"], envs["RAY_CLUSTER_INDEX"]) == ("1", "0")
    assert run.wait() is None
    wait_for(lambda: reason(cluster, run.lease) == "Running", 20, "Arcadia to say so, too")
    run.teardown(grace=1)
    assert worker(cluster, run.lease) is None
    gone(cluster, run.lease)
    run.teardown(grace=1)


def test_a_worker_of_our_image_gets_the_batch_token_through_a_secret_and_no_api_key(
    run: Run, cluster: Cluster, caplog: pytest.LogCaptureFixture
):
    settings = made_here()

    def attempt(try_number: int) -> tuple[dict[str, Any], dict[str, str]]:
        handle = run.launch(try_number=try_number, launcher="custom_resource", custom_resource=settings)
        kept = cluster.core.read_namespaced_secret(handle["where"]["secret"], cluster.namespace)
        assert kept.metadata.owner_references[0].name == run.lease
        return handle, {key: base64.b64decode(value).decode() for key, value in kept.data.items()}

    handle, data = attempt(1)
    assert set(data) == {"batch-token"}
    assert attempt(2) == (handle, data), "another attempt keeps it"
    token = data["batch-token"]
    known = asyncio.run(ArcadiaHook().credentials(WorkerHandle.from_dict(handle)))
    assert (known.api_key, known.batch_token) == (None, token)
    assert token not in json.dumps(handle) + json.dumps(worker(cluster, run.lease)) + caplog.text
    assert run.wait() is None
    found = [p for p in psutil.process_iter() if has(p, "ARCADIA_BATCH_TOKEN", token)]
    assert found, "the container has it"


def has(process: psutil.Process, variable: str, value: str) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.environ().get(variable) == value
    return False


@pytest.mark.parametrize("settings", [{"existing": True}, {"runner": {"image": "kubeagi/arcadia-fastchat"}}])
def test_a_worker_that_would_not_read_it_gets_no_secret(run: Run, cluster: Cluster, settings: dict[str, Any]):
    reached = made_before(cluster, "qwen") | {"name": "qwen"} if "existing" in settings else {}
    handle = launch(run, **settings, **reached)
    assert "secret" not in handle["where"]
    assert [item for item in run.objects if "Secret" in item] == []
    assert asyncio.run(ArcadiaHook().credentials(WorkerHandle.from_dict(handle))) == Credentials()


def test_a_retry_finds_the_worker_and_one_deleted_by_hand_is_made_again(run: Run, cluster: Cluster):
    settings = made_here()

    def again(try_number: int) -> dict[str, Any]:
        return run.launch(try_number=try_number, launcher="custom_resource", custom_resource=settings)

    first = again(1)
    assert again(2) == first
    assert run.wait() is None
    arcadia.delete(cluster, run.lease)
    gone(cluster, run.lease)
    assert "was deleted" in str(run.wait())
    assert again(3)["where"]["uid"] != first["where"]["uid"]
    assert run.wait() is None


def test_a_manifest_of_arcadias_documentation_runs(run: Run, cluster: Cluster, tmp_path: Path):
    settings = made_here()
    spec = {
        "additionalEnvs": [
            {"name": "NUMBER_GPUS", "value": "1"},
            {"name": "RAY_CLUSTER_INDEX", "value": "0"},
            *settings["additional_envs"],
        ],
        "creator": "admin",
        "displayName": "qwen-7b",
        "model": {"kind": "Model", "name": "qwen"},
        "resources": settings["resources"],
        "runner": settings["runner"],
    }
    document = {
        "apiVersion": "arcadia.kubeagi.k8s.com.cn/v1alpha1",
        "kind": "Worker",
        "metadata": {"name": "qwen-7b"},
        "spec": spec,
    }
    (tmp_path / "worker.yaml").write_text(yaml.safe_dump(document))
    operator = ArcadiaLaunchWorkerOperator.from_manifest(
        tmp_path / "worker.yaml",
        task_id="launch",
        lease=run.lease,
        custom_resource={"worker_url": settings["worker_url"]},
    )
    run.handle = operator.execute(make_context(run.run_id))
    assert run.wait() is None
    made = worker(cluster, "qwen-7b")
    assert made is not None
    # Our own variable comes beside what the manifest has.
    assert made["spec"]["additionalEnvs"].pop()["name"] == "ARCADIA_BATCH_TOKEN"
    assert {key: made["spec"][key] for key in spec} == spec
    run.teardown(grace=1)
    assert worker(cluster, "qwen-7b") is None


def test_an_existing_worker_is_taken_online_and_offline_and_never_deleted(run: Run, cluster: Cluster):
    reached = made_before(cluster, "qwen")
    before = worker(cluster, "qwen")
    handle = launch(run, name="qwen", existing=True, **reached)
    assert run.wait() is None
    assert (
        launch(run, name="qwen", existing=True, **reached, try_number=2)["where"]["uid"]
        == (handle["where"]["uid"])
    )
    run.teardown(grace=1)
    after = worker(cluster, "qwen")
    assert before is not None
    assert after is not None
    assert after["metadata"]["uid"] == before["metadata"]["uid"] == handle["served_model_name"]
    assert after["spec"] == before["spec"]
    assert (after["metadata"].get("labels"), after["metadata"].get("ownerReferences")) == (None, None)
    assert TAKEN_BY not in (after["metadata"].get("annotations") or {})
    gone(cluster, "qwen")
    run.teardown(grace=1)


def test_one_that_was_online_before_stays_online(run: Run, cluster: Cluster):
    reached = made_before(cluster, "qwen", replicas=1)
    launch(run, name="qwen", existing=True, **reached)
    assert run.wait() is None
    run.teardown(grace=1)
    wait_for(lambda: reason(cluster, "qwen") == "Running", 20, "Arcadia to say so, too")
    assert len(pods(cluster, "qwen")) == 1


def test_two_runs_side_by_side_do_not_touch_each_other(run: Run, cluster: Cluster):
    other = Run(cluster, "manual__2")
    other.reserve()
    launch(run)
    kept = launch(other)
    assert (run.wait(), other.wait()) == (None, None)
    run.teardown(grace=1)
    assert worker(cluster, run.lease) is None
    assert other.wait() is None
    assert (worker(cluster, other.lease) or {})["metadata"]["uid"] == kept["where"]["uid"]
    other.teardown(grace=1)
    assert other.objects == []


def test_two_runs_do_not_share_a_worker_and_one_whose_run_is_gone_is_taken_over(run: Run, cluster: Cluster):
    reached = made_before(cluster, "qwen")
    launch(run, name="qwen", existing=True, **reached)
    other = Run(cluster, "manual__2")
    other.reserve()
    with pytest.raises(WorkerInUseError, match=f"lease {run.lease} took it online"):
        launch(other, name="qwen", existing=True, **reached)
    other.teardown(grace=1)
    assert (worker(cluster, "qwen") or {})["spec"]["replicas"] == 1
    cluster.coordination.delete_namespaced_lease(run.lease, cluster.namespace)
    other.reserve()
    launch(other, name="qwen", existing=True, **reached)
    assert other.wait() is None
    other.teardown(grace=1)
    assert (worker(cluster, "qwen") or {})["spec"]["replicas"] == 0


def test_a_worker_that_is_kept_has_the_same_uid_in_the_next_run(run: Run, cluster: Cluster):
    settings = made_here(name="qwen", teardown="offline")
    handles = []
    for name in ("manual__1", "manual__2"):
        each = Run(cluster, name)
        each.reserve()
        handles.append(each.launch(launcher="custom_resource", custom_resource=settings))
        assert each.wait() is None
        each.teardown(grace=1)
        gone(cluster, "qwen")
        wait_for(lambda: reason(cluster, "qwen") == "Offline", 20, "Arcadia to say so, too")
    assert handles[0]["served_model_name"] == handles[1]["served_model_name"]


def test_a_worker_of_somebody_elses_is_neither_taken_over_nor_deleted(run: Run, cluster: Cluster):
    made_before(cluster, "qwen")
    with pytest.raises(
        AirflowFailException, match="Worker qwen already exists and belongs to something else"
    ):
        launch(run, name="qwen")
    with pytest.raises(AirflowFailException, match="Set existing=True"):
        launch(run, name="qwen", teardown="offline")
    with pytest.raises(AirflowFailException, match="has no Worker nowhere"):
        launch(run, name="nowhere", existing=True)
    run.teardown(grace=1)
    assert (worker(cluster, "qwen") or {})["spec"]["replicas"] == 0


def test_a_launch_that_a_teardown_overtook_takes_the_worker_offline_again(
    run: Run, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
):
    reached = made_before(cluster, "qwen")
    make = CustomResourceLauncher._make

    async def overtaken(self: CustomResourceLauncher, *args: Any) -> Any:
        cluster.coordination.delete_namespaced_lease(run.lease, cluster.namespace)
        return await make(self, *args)

    monkeypatch.setattr(CustomResourceLauncher, "_make", overtaken)
    with pytest.raises(LeaseError):
        launch(run, name="qwen", existing=True, **reached)
    assert (worker(cluster, "qwen") or {})["spec"]["replicas"] == 0


def test_a_pod_that_does_not_go_keeps_the_lease_for_a_later_teardown(
    run: Run, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("airflow_arcadia.launchers.arcadia_worker.launcher._GONE_S", 0.5)
    reached = made_before(cluster, "qwen")
    launch(run, name="qwen", existing=True, **reached)
    assert run.wait() is None
    (pod,) = pods(cluster, "qwen")
    held = {"metadata": {"finalizers": ["tests.example/hold"]}}
    cluster.core.patch_namespaced_pod(pod, cluster.namespace, held)
    with pytest.raises(TeardownError, match=rf"Pod {cluster.namespace}/{pod}"):
        run.teardown(grace=1)
    assert ArcadiaHook().leases.read(run.lease) is not None
    cluster.core.patch_namespaced_pod(pod, cluster.namespace, {"metadata": {"finalizers": None}})
    run.teardown(grace=1)


@pytest.fixture
def told(run: Run) -> Callable[[Callable[[], Any]], str]:
    """Why the wait for the run's worker failed, soon after the cluster said it."""
    return lambda said: told_in_time(said, lambda: run.wait(startup_timeout=60))


def container_waits(cluster: Cluster, name: str, wanted: str) -> bool:
    found = [cluster.pod(pod) or {} for pod in pods(cluster, name)]
    statuses = [c for pod in found for c in (pod.get("status") or {}).get("containerStatuses") or ()]
    return any((c["state"].get("waiting") or {}).get("reason") == wanted for c in statuses)


def test_an_image_that_cannot_be_pulled_is_named_though_arcadia_only_says_pending(
    run: Run, cluster: Cluster, told: Any
):
    launch(run, runner={"image": "registry.invalid/none:1"})
    failed = told(lambda: container_waits(cluster, run.lease, "ImagePullBackOff"))
    assert "ImagePullBackOff" in failed
    wait_for(lambda: reason(cluster, run.lease) == "Pending", 20, "Arcadia to say so")


def test_a_worker_that_fits_on_no_node_is_named(run: Run, cluster: Cluster, told: Any):
    launch(run, resources={"limits": {"nvidia.com/gpu": "64"}})
    assert "Insufficient nvidia.com/gpu" in told(lambda: pods(cluster, run.lease))


def test_a_worker_that_crashes_is_named_with_the_cause_in_its_log(run: Run, cluster: Cluster, told: Any):
    arcadia.run_as_runner(cluster, "raise ValueError('the cause')")
    launch(run)
    assert "ValueError: the cause" in told(lambda: container_waits(cluster, run.lease, "CrashLoopBackOff"))


def test_an_error_of_arcadias_is_told_in_its_words(run: Run, cluster: Cluster, told: Any):
    cluster.core.delete_namespaced_config_map("arcadia-config", cluster.namespace)
    launch(run)
    assert "failed to get arcadia config" in told(lambda: reason(cluster, run.lease) == "Error")


def test_a_worker_taken_offline_or_deleted_by_hand_is_named(run: Run, cluster: Cluster, told: Any):
    launch(run, worker_url=f"http://127.0.0.1:{free_port()}")  # where nothing answers: never ready
    by_hand = threading.Timer(1.0, lambda: arcadia.change(cluster, run.lease, {"spec": {"replicas": 0}}))
    by_hand.start()
    assert "was taken offline" in told(lambda: (worker(cluster, run.lease) or {})["spec"]["replicas"] == 0)
    arcadia.delete(cluster, run.lease)
    assert "was deleted" in told(lambda: worker(cluster, run.lease) is None)


def test_the_runners_log_is_told_while_one_waits(
    run: Run, cluster: Cluster, capsys: pytest.CaptureFixture[str]
):
    script = "print('loading weights', flush=True); import time; time.sleep(2); raise SystemExit(3)"
    arcadia.run_as_runner(cluster, script)
    launch(run)
    assert "exit code 3" in str(run.wait())
    assert f"[{run.lease}] loading weights" in capsys.readouterr().out


@pytest.mark.parametrize("when", ["launch", "wait", "teardown"])
def test_an_api_server_away_for_seconds_is_survived(run: Run, loopback: Loopback, when: str):
    steps: dict[str, Callable[[], Any]] = {
        "launch": lambda: launch(run) and None,
        "wait": run.wait,
        "teardown": lambda: run.teardown(grace=1),
    }

    def away() -> None:
        with loopback.api_away():
            time.sleep(2)  # how long it is away: what is tested, not what is waited for

    for name, step in steps.items():
        outage = threading.Thread(target=away) if name == when else None
        if outage:
            outage.start()
        assert step() is None
        if outage:
            outage.join()


def test_a_missing_right_is_named(run: Run, loopback: Loopback):
    loopback.deny("create", "workers")
    with pytest.raises(AirflowFailException, match="may not create workers of API group"):
        launch(run)
    loopback.obey_all()


def created(**change: Any) -> dict[str, Any]:
    connection = RayConnection(0, "a", "h:6379", "http://h:8265", "2.60.0", "3.11.7", 2, 2)
    return {**connection.to_dict(), **change}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"ray": created(created=True)}, "was made for this run"),
        (
            {"ray": created(index=1), "custom_resource": {"ray_cluster_index": 0}},
            "RAY_CLUSTER_INDEX is 0, but",
        ),
        ({"num_gpus": 2}, "lists no Ray cluster"),
        ({"served_model_name": "qwen"}, "Arcadia serves it under its uid"),
        ({"custom_resource": {"namespace": "elsewhere"}}, "is to be in namespace elsewhere"),
        ({"custom_resource": {"name": "Not A Name"}}, "refuses to create workers"),
        ({"launcher": "pod"}, "custom_resource is set, but the worker is a pod"),
        ({"pod": {"image": "i"}}, "pod is set, but the worker is Arcadia's Worker"),
        ({"index": 1, "custom_resource": {"existing": True, "name": "w"}}, "is one"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_made(
    run: Run, cluster: Cluster, wrong: dict[str, Any], said: str
):
    settings = wrong.get("custom_resource", {})
    settings = settings if settings.get("existing") else made_here(**settings)
    with pytest.raises(AirflowFailException, match=said):
        run.launch(**{"launcher": "custom_resource", **wrong, "custom_resource": settings})
    assert arcadia.workers(cluster) == []


def test_a_ray_cluster_index_is_held_against_arcadias_configuration(
    run: Run, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
):
    connect(monkeypatch, cluster, arcadia_config_map="arcadia-config", arcadia_config_yaml="")
    with pytest.raises(AirflowFailException, match=r"RAY_CLUSTER_INDEX 1 is out of range.*0: two-gpus"):
        launch(run, ray_cluster_index=1)
    with pytest.raises(ArcadiaConfigError, match=r"ray_cluster_index is 'x', not a whole number"):
        launch(run, ray_cluster_index="x")
    assert arcadia.workers(cluster) == []
