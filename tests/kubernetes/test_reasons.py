"""Why a pod will not serve is named, and fails the wait within seconds of the cluster saying so."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.conftest import wait_for
from tests.kubernetes.workers import STAND_IN, Run, connect, stand_in, told_in_time
from tests.loopback_cluster.cluster import Cluster, Loopback

LOADING = "import time; print('loading weights', flush=True); time.sleep(60)"
GREEDY = "b = bytearray(400_000_000); import time; time.sleep(60)"


@pytest.fixture
def make(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Run]]:
    connect(monkeypatch, cluster)
    made = []

    def call(script: str | None = None, spec: dict[str, Any] | None = None, **pod: Any) -> Run:
        settings = stand_in(cluster) | pod
        container = settings["full_pod_spec"]["spec"]["containers"][0]
        if script:
            container["command"] = ["python3", "-c", script]
        container |= (spec or {}).pop("container", {})
        settings["full_pod_spec"]["spec"] |= spec or {}
        run = Run(cluster, f"manual__{len(made)}", settings)
        run.reserve()
        made.append(run)
        return run

    yield call
    for run in made:
        run.teardown(grace=1)
        assert run.objects == []


def told(run: Run, said: Callable[[dict[str, Any]], bool]) -> str:
    """Why the wait for the run's pod failed, soon after the pod ``said`` it."""
    name = run.handle["where"]["pod"]
    return told_in_time(lambda: said(run.cluster.pod(name) or {}), lambda: run.wait(startup_timeout=90))


def reason(wanted: str) -> Callable[[dict[str, Any]], bool]:
    """Whether a container's state, or the pod itself, has that reason."""

    def said(pod: dict[str, Any]) -> bool:
        status = pod.get("status") or {}
        states = [s for c in status.get("containerStatuses") or () for s in c["state"].values()]
        conditions = status.get("conditions") or ()
        return wanted in {status.get("reason"), *(x.get("reason") for x in [*states, *conditions])}

    return said


@pytest.mark.parametrize(
    ("settings", "wanted", "sentence"),
    [
        ({"image": "registry.invalid/none:1"}, "ImagePullBackOff", "image_pull_secrets"),
        ({"image": "Not An Image"}, "InvalidImageName", "Correct the image's name"),
        (
            {
                "spec": {
                    "container": {
                        "env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "no-such", "key": "k"}}}]
                    }
                }
            },
            "CreateContainerConfigError",
            "no-such",
        ),
        (
            {"script": "raise ValueError('the cause')", "spec": {"restartPolicy": "Always"}},
            "CrashLoopBackOff",
            "ValueError: the cause",
        ),
        ({"script": "raise ValueError('the cause')"}, "Error", "ValueError: the cause"),
        (
            {"script": GREEDY, "resources": {"limits": {"memory": "100Mi"}}},
            "OOMKilled",
            "Raise the memory limit",
        ),
        (
            {"resources": {"limits": {"nvidia.com/gpu": "64"}}},
            "Unschedulable",
            "Insufficient nvidia.com/gpu",
        ),
        (
            {"script": LOADING, "active_deadline_seconds": 2},
            "DeadlineExceeded",
            "Raise active_deadline_seconds",
        ),
    ],
)
def test_a_reason_is_named_within_seconds(make: Any, settings: dict[str, Any], wanted: str, sentence: str):
    run = make(**settings)
    run.launch()
    failed = told(run, reason(wanted))
    assert sentence in failed
    assert run.handle["where"]["pod"] in failed


def test_a_pod_deleted_by_hand_is_named(make: Any, cluster: Cluster):
    run = make(LOADING)
    run.launch()
    name = run.handle["where"]["pod"]
    cluster.wait_for_phase(name, "Running")
    deleting = threading.Timer(
        0.5,
        lambda: cluster.core.delete_namespaced_pod(name, cluster.namespace, grace_period_seconds=1),
    )
    deleting.start()
    failed = told(run, lambda pod: not pod or "deletionTimestamp" in pod["metadata"])
    assert f"Pod {name} is being deleted" in failed or f"Pod {name} is gone" in failed


def test_an_evicted_pod_is_named(make: Any, loopback: Loopback, cluster: Cluster):
    run = make(LOADING)
    run.launch()
    name = run.handle["where"]["pod"]
    cluster.wait_for_phase(name, "Running")
    threading.Timer(0.5, lambda: loopback.evict(name)).start()
    assert "(Evicted)" in told(run, reason("Evicted"))


def test_a_lost_node_is_named(make: Any, loopback: Loopback, cluster: Cluster):
    # It answers its probes and serves no model: the wait goes on until the node is lost.
    run = make(STAND_IN.replace("ANSWERS.get(self.path, {})", "{}"))
    run.launch()
    name = run.handle["where"]["pod"]

    def ready() -> str | None:
        conditions = (cluster.pod(name) or {}).get("status", {}).get("conditions") or ()
        return next((c["status"] for c in conditions if c["type"] == "Ready"), None)

    wait_for(lambda: ready() == "True", 30, "the pod to be ready")
    losing = threading.Timer(0.5, loopback.lose_node)
    losing.start()
    assert "is lost (NodeNotReady)" in told(run, lambda _: ready() == "False")
    losing.join()
    # Its pods can only be taken away once the node is back.
    loopback.return_node()


def test_the_workers_log_is_told_while_one_waits(make: Any, capsys: pytest.CaptureFixture[str]):
    run = make("print('loading weights', flush=True); import time; time.sleep(2); raise SystemExit(3)")
    run.launch()
    assert "exit code 3" in str(run.wait())
    assert "loading weights" in capsys.readouterr().out


def test_a_slow_autoscaler_is_given_its_grace(make: Any):
    run = make(resources={"limits": {"nvidia.com/gpu": "64"}}, unschedulable_grace=3.0)
    run.launch()
    began = time.monotonic()
    assert "Unschedulable" in str(run.wait())
    assert time.monotonic() - began > 2.0
