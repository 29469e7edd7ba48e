"""A worker's pod from its launch to its end, through the operators and a cluster's API."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
import time
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException

from airflow_arcadia.exceptions import ArcadiaConfigError, ArcadiaError, TeardownError
from airflow_arcadia.hooks.arcadia import ArcadiaHook
from airflow_arcadia.worker import WorkerHandle
from tests.conftest import wait_for
from tests.kubernetes.workers import STAND_IN, Run, connect, stand_in
from tests.loopback_cluster.cluster import Cluster, Loopback


@pytest.fixture
def run(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Run:
    connect(monkeypatch, cluster, password="the-api-key", hf_token="the-hf-token")
    made = Run(cluster, pod=stand_in(cluster))
    made.reserve()
    return made


def test_a_pod_is_launched_ready_and_torn_down_with_all_that_belongs_to_it(run: Run):
    handle = run.launch()
    assert handle["where"]["pod"] == f"{run.lease}-worker"
    assert run.wait() is None
    assert len(run.objects) == 4
    run.teardown()
    assert run.objects == []
    run.teardown()


def test_a_worker_is_asked_as_soon_as_its_pod_is_ready(run: Run):
    container = run.pod["full_pod_spec"]["spec"]["containers"][0]
    container["command"][-1] = f"import time; time.sleep(3)\n{STAND_IN}"
    run.launch()
    # Only the pod's own word can end this wait: the next question would come after the time-out.
    assert run.wait(startup_timeout=30, poll_interval=60) is None
    run.teardown()


def test_a_retry_re_attaches_and_a_pod_that_ended_makes_room_for_a_new_one(run: Run, cluster: Cluster):
    first = run.launch()
    assert run.launch(try_number=2) == first
    cluster.core.delete_namespaced_pod(first["where"]["pod"], cluster.namespace, grace_period_seconds=0)
    again = run.launch(try_number=3)
    assert again["where"]["uid"] != first["where"]["uid"]
    assert run.wait() is None
    run.teardown()


def test_the_lease_owns_everything_so_that_deleting_it_is_enough(run: Run, cluster: Cluster):
    run.launch()
    cluster.coordination.delete_namespaced_lease(run.lease, cluster.namespace)
    wait_for(lambda: run.objects == [], 60, "everything to be collected")
    run.teardown()


def test_no_secret_is_in_the_pod_in_clear(run: Run, cluster: Cluster, caplog: pytest.LogCaptureFixture):
    handle = run.launch()
    pod = json.dumps(cluster.pod(handle["where"]["pod"]))
    lease = cluster.coordination.read_namespaced_lease(run.lease, cluster.namespace)
    kept = cluster.core.read_namespaced_secret(f"{run.lease}-worker", cluster.namespace)
    secrets = {key: base64.b64decode(value).decode() for key, value in kept.data.items()}
    assert set(secrets) == {"api-key", "hf-token", "batch-token"}
    assert (secrets["api-key"], secrets["hf-token"]) == ("the-api-key", "the-hf-token")
    for secret in secrets.values():
        assert secret not in pod + json.dumps(handle) + str(lease) + caplog.text
    # Another attempt makes no other token, and the run's tasks read the one there is.
    assert run.launch()["where"]["uid"] == handle["where"]["uid"]
    read = asyncio.run(ArcadiaHook().credentials(WorkerHandle.from_dict(handle)))
    assert (read.api_key, read.batch_token) == ("the-api-key", secrets["batch-token"])
    run.teardown()


def test_settings_rendered_as_text_and_the_startup_timeout_reach_the_pod(run: Run, cluster: Cluster):
    run.launch(
        startup_timeout="7200",
        engine={"drain_seconds": "45"},
        pod=json.dumps(
            {
                "image": cluster.python_image,
                "active_deadline_seconds": "3600",
                "automount_service_account_token": "False",
                "tolerations": json.dumps([{"key": "gpu", "operator": "Exists"}]),
            }
        ),
    )
    spec = cluster.core.read_namespaced_pod(run.handle["where"]["pod"], cluster.namespace).spec
    probe = spec.containers[0].startup_probe
    assert probe.period_seconds * probe.failure_threshold >= 7200
    assert (spec.active_deadline_seconds, spec.automount_service_account_token) == (3600, False)
    assert "gpu" in [toleration.key for toleration in spec.tolerations]
    env = {item.name: item.value for item in spec.containers[0].env}
    assert float(env["ARCADIA_DRAIN_SECONDS"]) == 45
    assert spec.termination_grace_period_seconds >= 45


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"port": 21003}, r"port is set, but the worker is a pod\. Leave port out and give it as pod="),
        ({"pod": {"image": "i", "port": "http"}}, r"pod\.port is 'http', not a whole number"),
        ({"pod": '{"image": "i", "imge": "i"}'}, "Did you mean 'image'"),
    ],
)
def test_a_setting_that_would_be_ignored_or_cannot_be_is_refused(run: Run, wrong: dict[str, Any], said: str):
    before = run.objects
    with pytest.raises((AirflowFailException, ArcadiaConfigError), match=said):
        run.launch(**wrong)
    assert run.objects == before


def test_a_secret_among_the_additional_envs_is_refused_before_anything_is_made(run: Run):
    with pytest.raises(AirflowFailException, match="HF_TOKEN, which looks like a secret"):
        run.launch(additional_envs={"HF_TOKEN": "x"})
    assert [item.split()[-1] for item in run.objects] == [run.lease], "the Lease alone"
    run.teardown()


def test_two_runs_side_by_side_do_not_touch_each_other(run: Run, cluster: Cluster):
    other = Run(cluster, "manual__2", stand_in(cluster))
    other.reserve()
    run.launch()
    other.launch()
    assert (run.wait(), other.wait()) == (None, None)
    run.teardown()
    assert run.objects == []
    assert other.wait() is None
    other.teardown()


def test_a_name_that_somebody_else_has_is_not_taken_over(run: Run, cluster: Cluster):
    name = f"{run.lease}-worker"
    body = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"ports": [{"port": 80}]},
    }
    cluster.core.create_namespaced_service(cluster.namespace, body)
    with pytest.raises(AirflowFailException, match=f"Service {name} already exists and belongs"):
        run.launch()
    run.teardown()
    assert cluster.core.read_namespaced_service(name, cluster.namespace)
    cluster.core.delete_namespaced_service(name, cluster.namespace)


def test_teardown_is_right_when_nothing_was_launched_and_when_two_race(run: Run):
    run.launch()
    errors: list[BaseException] = []

    def tear() -> None:
        try:
            run.teardown()
        except BaseException as error:  # noqa: BLE001 - handed to the test's own thread
            errors.append(error)

    racers = [threading.Thread(target=tear) for _ in range(2)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    assert errors == []
    assert run.objects == []
    empty = Run(run.cluster, "manual__never")
    empty.reserve()
    empty.teardown()
    assert empty.objects == []


def test_what_does_not_go_is_reported_and_fails_the_teardown(
    run: Run, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("airflow_arcadia.kubernetes.cleanup.COLLECTION_S", 0.5)
    handle = run.launch()
    held = {"metadata": {"finalizers": ["tests.example/hold"]}}
    cluster.core.patch_namespaced_pod(handle["where"]["pod"], cluster.namespace, held)
    with pytest.raises(TeardownError, match=rf"Pod {cluster.namespace}/{run.lease}-worker \(being deleted\)"):
        run.teardown(grace=1)
    freed = {"metadata": {"finalizers": None}}
    cluster.core.patch_namespaced_pod(handle["where"]["pod"], cluster.namespace, freed)
    run.teardown()


@pytest.mark.parametrize("when", ["launch", "wait", "teardown"])
def test_an_api_server_away_for_seconds_is_survived(run: Run, loopback: Loopback, when: str):
    def away() -> None:
        loopback.stop_api()
        time.sleep(2)  # how long it is away: what is tested, not what is waited for
        loopback.start_api()

    steps: dict[str, Any] = {"launch": run.launch, "wait": run.wait, "teardown": run.teardown}
    for name, step in steps.items():
        outage = threading.Thread(target=away) if name == when else None
        if outage:
            outage.start()
        assert step() is None or name == "launch"
        if outage:
            outage.join()
    assert run.objects == []


def test_a_missing_right_is_named_by_verb_and_resource(run: Run, loopback: Loopback, cluster: Cluster):
    lease_only = [{"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["get", "update"]}]
    loopback.obey([{"metadata": {"namespace": cluster.namespace}, "rules": lease_only}])
    with pytest.raises(AirflowFailException, match=r"may not create (secrets|services|pods)"):
        run.launch()


def test_a_used_up_quota_is_named_and_may_be_tried_again(run: Run, cluster: Cluster):
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "q"},
        "spec": {"hard": {"pods": "0"}},
    }
    cluster.core.create_namespaced_resource_quota(cluster.namespace, quota)
    with pytest.raises(ArcadiaError, match="exceeded quota: q"):
        run.launch()
    run.teardown()
