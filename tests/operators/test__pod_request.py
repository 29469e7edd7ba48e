"""The pod as it is sent: our manifest, the user's overlays, and KubernetesPodOperator's own hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from airflow_arcadia.exceptions import ArcadiaConfigError
from airflow_arcadia.launchers.pod import manifest
from airflow_arcadia.launchers.pod.settings import PodSettings
from airflow_arcadia.lease import Identity, Lease
from airflow_arcadia.operators._pod_request import pod_request
from airflow_arcadia.worker import WorkerSpec
from tests.airflow_context import RUN_ID, make_context
from tests.loopback_cluster.cluster import write_kubeconfig

LEASE = Lease("answer-1", Identity("dag", "manual__1", "answer"), 0.0, 0.0, uid="u-1")


@pytest.fixture(autouse=True)
def connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One to a cluster that is never asked."""
    kubeconfig = write_kubeconfig(tmp_path / "kubeconfig", "http://127.0.0.1:9")
    extra = {"kube_config_path": str(kubeconfig)}
    monkeypatch.setenv(
        "AIRFLOW_CONN_KUBERNETES_DEFAULT", json.dumps({"conn_type": "kubernetes", "extra": extra})
    )


def sent(*, try_number: int = 1, **settings: Any) -> dict[str, Any]:
    """The request for a pod with these settings."""
    parsed = PodSettings.parse({"image": "worker:1", **settings})
    placed = WorkerSpec(name="answer-1", model="m").at(manifest.placement("answer-1", parsed, "ns", {}))
    context: Any = make_context(try_number=try_number)
    request = pod_request(parsed, context, task_id="launch", kubernetes_conn_id="kubernetes_default")
    return request(manifest.pod(placed, LEASE, parsed, {}))


def worker(pod: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = next(c for c in pod["spec"]["containers"] if c["name"] == "worker")
    return found


def test_what_is_asked_of_the_place_is_what_is_sent():
    tolerations = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    resources = {
        "requests": {"cpu": "4", "nvidia.com/gpu": "1"},
        "limits": {"memory": "16Gi", "nvidia.com/gpu": "1"},
    }
    pod = sent(
        resources=resources,
        node_selector={"kind": "gpu"},
        tolerations=tolerations,
        image_pull_secrets=["pull"],
        image_pull_policy="Always",
        service_account_name="reader",
        priority_class_name="urgent",
        queue_name="team",
        active_deadline_seconds=60,
        labels={"team": "a"},
        annotations={"note": "b"},
    )
    spec = pod["spec"]
    assert worker(pod)["resources"] == resources
    assert worker(pod)["imagePullPolicy"] == "Always"
    assert (spec["nodeSelector"], spec["tolerations"]) == ({"kind": "gpu"}, tolerations)
    assert spec["imagePullSecrets"] == [{"name": "pull"}]
    assert (spec["serviceAccountName"], spec["priorityClassName"]) == ("reader", "urgent")
    assert spec["activeDeadlineSeconds"] == 60
    assert pod["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team"
    assert pod["metadata"]["labels"]["team"] == "a"
    assert pod["metadata"]["annotations"]["note"] == "b"


def test_it_carries_airflows_identity_and_is_the_same_for_every_try():
    first, second = (sent(try_number=number) for number in (1, 2))
    labels = first["metadata"]["labels"]
    assert (labels["dag_id"], labels["task_id"], labels["run_id"]) == ("dag", "task", RUN_ID)
    # KubernetesPodOperator tells of the try as well; nothing is found by it.
    assert [pod["metadata"]["labels"].pop("try_number") for pod in (first, second)] == ["1", "2"]
    assert first == second


def test_an_overlay_adds_and_wins_but_not_over_what_finds_the_pod_again():
    sidecar = {"name": "proxy", "image": "proxy:1"}
    overlay = {
        "metadata": {
            "name": "mine",
            "labels": {"mine": "1", "airflow-arcadia/lease": "not-this"},
            "ownerReferences": [],
        },
        "spec": {
            "containers": [{"name": "worker", "image": "mine:2"}, sidecar],
            "hostIPC": True,
            "dnsPolicy": "None",
        },
    }
    pod = sent(full_pod_spec=overlay)
    assert worker(pod)["image"] == "mine:2"
    assert worker(pod)["readinessProbe"]["httpGet"]["path"] == "/health"
    assert [c["image"] for c in pod["spec"]["containers"] if c["name"] == "proxy"] == ["proxy:1"]
    assert (pod["spec"]["hostIPC"], pod["spec"]["dnsPolicy"]) == (True, "None")
    assert pod["metadata"]["name"] == "answer-1-worker"
    assert pod["metadata"]["ownerReferences"][0]["uid"] == "u-1"
    assert pod["metadata"]["labels"]["mine"] == "1"
    assert pod["metadata"]["labels"]["airflow-arcadia/lease"] == "answer-1"


def test_a_template_lies_beneath_ours():
    template = {"spec": {"containers": [{"name": "worker", "image": "theirs:1"}], "schedulerName": "other"}}
    pod = sent(pod_template_dict=template)
    assert worker(pod)["image"] == "worker:1"
    assert pod["spec"]["schedulerName"] == "other"


@pytest.mark.parametrize("overlay", ["pod_template_dict", "full_pod_spec"])
def test_a_field_that_pods_do_not_have_is_named(overlay: str):
    with pytest.raises(ArcadiaConfigError, match=rf"{overlay}\.spec\.contianers is not a field of a pod"):
        sent(**{overlay: {"spec": {"contianers": [{"name": "worker"}]}}})


def test_an_overlay_need_not_speak_of_containers():
    for overlay in ("pod_template_dict", "full_pod_spec"):
        pod = sent(**{overlay: {"spec": {"schedulerName": "other"}}})
        assert (pod["spec"]["schedulerName"], worker(pod)["image"]) == ("other", "worker:1")


def test_an_overlay_that_is_no_pod_is_named():
    with pytest.raises(ArcadiaConfigError, match=r"full_pod_spec is not a valid pod: .*`name`"):
        sent(full_pod_spec={"spec": {"containers": [{"image": "nameless:1"}]}})


def test_what_is_false_stays_false_through_the_merging():
    spec = sent(full_pod_spec={"spec": {"containers": [{"name": "worker"}]}})["spec"]
    assert (spec["automountServiceAccountToken"], spec["enableServiceLinks"]) == (False, False)
    assert spec["restartPolicy"] == "Never"
