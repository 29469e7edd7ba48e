"""What a launch sends by default, as a strict API server and the restricted Pod Security level see it."""

from __future__ import annotations

import base64
import copy
import json
from typing import Any

import pytest
from kubernetes import client  # noqa: TID253 - what an administrator makes

from tests.deploy.test_manifests import MODELS
from tests.kubernetes.workers import Run, connect
from tests.loopback_cluster.api.schema import check
from tests.loopback_cluster.api.status import ApiFailure
from tests.loopback_cluster.cluster import Cluster, Loopback

SECRETS = {"password": "kept-api-key", "ray_token": "kept-ray-token", "hf_token": "kept-hf-token"}
# Unlike anything that is merged by mistake: every setting that makes a part of its own.
EVERYTHING: dict[str, Any] = {
    "resources": {"requests": {"cpu": "1", "nvidia.com/gpu": "1"}, "limits": {"nvidia.com/gpu": "1"}},
    "image_pull_policy": "IfNotPresent",
    "image_pull_secrets": ["pull"],
    "model_volume": {"persistentVolumeClaim": {"claimName": "models"}},
    "loader": {"image": "registry.test/loader", "command": ["fetch"], "env": [{"name": "A", "value": "1"}]},
    "node_selector": {"kind": "gpu"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    "match_expressions": [{"key": "gpu", "operator": "In", "values": ["a100"]}],
    "priority_class_name": "batch",
    "queue_name": "team",
    "labels": {"team": "a"},
    "annotations": {"note": "b"},
}
RESTRICTED_VOLUMES = {"name", "configMap", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim"}


@pytest.fixture
def sent(
    cluster: Cluster, loopback: Loopback, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> list[dict[str, Any]]:
    """The objects that one launch asked for."""
    connect(monkeypatch, cluster, **SECRETS)
    urgency = {
        "apiVersion": "scheduling.k8s.io/v1",
        "kind": "PriorityClass",
        "metadata": {"name": EVERYTHING["priority_class_name"]},
        "value": 1000,
    }
    client.SchedulingV1Api(cluster.core.api_client).create_priority_class(urgency)
    asked: list[dict[str, Any]] = []
    add = loopback.api.store.add

    def keep(key: Any, body: dict[str, Any], *rest: Any, **more: Any) -> Any:
        asked.append(copy.deepcopy(body))
        return add(key, body, *rest, **more)

    monkeypatch.setattr(loopback.api.store, "add", keep)
    run = Run(cluster, pod=getattr(request, "param", {}))
    run.reserve()
    run.launch()
    monkeypatch.undo()
    return [item for item in asked if item["kind"] in {"Lease", "Secret", "Service", "Pod"}]


BOTH = pytest.mark.parametrize("sent", [{}, EVERYTHING], ids=["default", "everything"], indirect=True)


@BOTH
def test_every_object_passes_the_strict_schema(sent: list[dict[str, Any]]):
    assert [item["kind"] for item in sent] == ["Lease", "Secret", "Service", "Pod"]
    for item in sent:
        check(MODELS[item["apiVersion"], item["kind"]], item)


@BOTH
def test_no_secret_is_in_clear_and_each_is_in_the_secret_alone(sent: list[dict[str, Any]]):
    secret = next(item for item in sent if item["kind"] == "Secret")
    named = {key: base64.b64decode(value).decode() for key, value in secret["data"].items()}
    kept = set(named.values())
    assert kept == {*SECRETS.values(), named["batch-token"]}
    assert len(named["batch-token"]) >= 32
    for item in sent:
        text = json.dumps(item)
        assert not [value for value in kept if value in text]
        if item is not secret:
            assert not [value for value in secret["data"].values() if value in text]


@BOTH
def test_the_pod_is_what_the_restricted_level_allows(sent: list[dict[str, Any]]):
    spec = next(item for item in sent if item["kind"] == "Pod")["spec"]
    security = spec["securityContext"]
    assert security["runAsNonRoot"] is True
    assert security["runAsUser"] > 0
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    assert not [key for key in ("hostNetwork", "hostPID", "hostIPC") if spec.get(key)]
    for volume in spec["volumes"]:
        assert set(volume) <= RESTRICTED_VOLUMES | {"secret"}
    for container in [*spec["containers"], *spec.get("initContainers", ())]:
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert not [port for port in container.get("ports", ()) if "hostPort" in port]


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("spec", "containers", 0, "resourcs"), {}, "unknown field"),
        (("spec", "containers", 0, "env", 0, "value"), 2, "cannot unmarshal"),
        (("spec", "containers", 0, "name"), None, "Required value"),
        (("spec", "containers", 0, "resources"), {"limits": {"memory": "8 GB"}}, "quantities must match"),
        (("metadata", "labels", "team"), "two words", "Invalid value"),
        (("spec", "restartPolicy"), "Sometimes", "Unsupported value"),
    ],
)
def test_the_check_would_refuse_a_fault(
    sent: list[dict[str, Any]], path: tuple[Any, ...], value: Any, said: str
):
    pod = next(item for item in sent if item["kind"] == "Pod")
    *way, last = path
    place: Any = pod
    for step in way:
        place = place[step]
    place[last] = value
    with pytest.raises(ApiFailure, match=said):
        check(MODELS["v1", "Pod"], pod)
