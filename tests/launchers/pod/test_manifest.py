"""The objects of a worker in a cluster, as manifests."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from airflow_arcadia.exceptions import ArcadiaConfigError
from airflow_arcadia.launchers.pod import manifest
from airflow_arcadia.launchers.pod.settings import PodSettings, refuse_secrets
from airflow_arcadia.lease import MAX_NAME, Identity, Lease
from airflow_arcadia.worker import Placement, WorkerSpec

LEASE = Lease("answer-1", Identity("d", "r", "answer"), 0.0, 0.0, uid="u-1")
SECRETS = {"api-key": "the-key", "hf-token": "the-token", "ray-token": "the-ray-token"}


def made(
    secrets: dict[str, str] | None = None, spec: dict[str, Any] | None = None, **settings: Any
) -> dict[str, Any]:
    startup_timeout = settings.pop("startup_timeout", 1800.0)
    parsed = PodSettings.parse({"image": "worker:1", **settings}, startup_timeout=startup_timeout)
    worker = WorkerSpec(name="answer-1", model="/data/models/m", **(spec or {}))
    placed = worker.at(manifest.placement(worker.name, parsed, "ns", secrets or {}))
    return manifest.pod(placed, LEASE, parsed, secrets or {})


def container(pod: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = pod["spec"]["containers"][0]
    return found


def env(pod: dict[str, Any]) -> dict[str, Any]:
    return {item["name"]: item.get("value", item.get("valueFrom")) for item in container(pod)["env"]}


def test_resources_are_passed_on_exactly_as_given_and_are_not_number_gpus():
    wanted = {"limits": {"cpu": "4", "memory": "16Gi", "nvidia.com/gpu": "1"}}
    pod = made(resources=wanted, spec={"num_gpus": 4, "ray_address": "head:6379"})
    assert container(pod)["resources"] == wanted
    assert env(pod)["NUMBER_GPUS"] == "4"
    assert env(pod)["RAY_CLUSTER_INDEX"] == "0"


def test_the_options_of_object_stores_are_a_file_of_the_secret():
    pod = made({"storage-options": "{}"})
    assert env(pod)["ARCADIA_STORAGE_OPTIONS_FILE"] == "/etc/arcadia/storage-options"
    assert "ARCADIA_STORAGE_OPTIONS_FILE" not in env(made(SECRETS))


SPREAD = WorkerSpec(name="answer-1", model="m", num_gpus=4, ray_address="head:6379").at(Placement())


@pytest.mark.parametrize(
    ("limits", "gpus"),
    [
        ({}, "0"),
        ({"cpu": "4"}, "0"),
        ({"nvidia.com/gpu": "1"}, "1"),
        ({"amd.com/gpu": 2, "nvidia.com/mig-1g.5gb": "1"}, "3"),
    ],
)
def test_the_worker_is_told_of_the_gpus_its_pod_is_sent_with(limits: dict[str, Any], gpus: str):
    pod = made(spec={"num_gpus": 4, "ray_address": "head:6379"})
    container(pod)["resources"] = {"limits": limits}  # as an overlay may have it
    assert env(manifest.with_own_gpus(pod, SPREAD))["ARCADIA_NODE_GPUS"] == gpus


def test_gpus_that_the_user_states_are_left_as_they_are():
    pod = made(spec={"num_gpus": 4, "ray_address": "h:1", "additional_envs": {"ARCADIA_NODE_GPUS": "7"}})
    assert env(manifest.with_own_gpus(pod, SPREAD))["ARCADIA_NODE_GPUS"] == "7"


def test_nothing_secret_is_in_the_manifest_but_the_paths_of_files():
    pod = made(SECRETS)
    assert not [secret for secret in SECRETS.values() if secret in json.dumps(pod)]
    assert env(pod)["ARCADIA_API_KEY_FILE"] == "/etc/arcadia/api-key"
    assert env(pod)["RAY_AUTH_TOKEN_PATH"] == "/etc/arcadia/ray-token"
    assert env(pod)["HF_TOKEN_PATH"] == "/etc/arcadia/hf-token"
    secret = manifest.secret(
        WorkerSpec(name="answer-1", model="m").at(Placement()), LEASE, PodSettings(), SECRETS
    )
    assert base64.b64decode(secret["data"]["api-key"]) == b"the-key"
    assert not [v for v in made()["spec"]["volumes"] if "secret" in v]


def test_it_may_do_no_more_than_it_must():
    pod = made()
    assert pod["spec"]["automountServiceAccountToken"] is False
    assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
    assert pod["spec"]["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container(pod)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }


def test_probes_give_a_loading_model_its_time_and_the_end_its_drain():
    pod = made(startup_timeout=1234, spec={"drain_seconds": 45.5})
    probe = container(pod)["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] == 1234
    assert probe["periodSeconds"] == 1, "every second that a loaded model is not asked, the run waits"
    assert pod["spec"]["terminationGracePeriodSeconds"] >= 45.5
    assert env(pod)["ARCADIA_DRAIN_SECONDS"] == "45.5"


def test_a_worker_that_is_not_ready_gets_no_requests_and_only_a_silent_server_is_killed():
    worker = container(made())
    paths = {kind: worker[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "readiness", "liveness")}
    assert paths == {"startup": "/health", "readiness": "/health", "liveness": "/version"}


def test_shared_memory_is_memory_of_a_stated_size_and_the_model_has_its_own_volume():
    claim = {"persistentVolumeClaim": {"claimName": "models"}}
    pod = made(shm_size="2Gi", model_volume=claim)
    volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
    assert volumes["shm"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "2Gi"}
    assert volumes["model"] == {"name": "model", **claim}
    mounts = {mount["name"]: mount for mount in container(pod)["volumeMounts"]}
    assert (mounts["shm"]["mountPath"], mounts["model"]["mountPath"]) == ("/dev/shm", "/data/models")
    assert mounts["model"]["readOnly"]


def test_a_loader_fills_the_model_volume_before_the_worker_reads_it():
    loader = {"image": "loader:1", "args": ["m"]}
    pod = made(model_volume={"emptyDir": {}}, loader=loader)
    (init,) = pod["spec"]["initContainers"]
    assert init["volumeMounts"] == [{"name": "model", "mountPath": "/data/models"}]
    assert (init["image"], init["args"]) == ("loader:1", ["m"])
    with pytest.raises(ArcadiaConfigError, match="no model_volume to load into"):
        made(loader=loader)


def test_the_host_address_comes_from_the_downward_api_unless_the_user_says_otherwise():
    assert env(made())["VLLM_HOST_IP"] == {"fieldRef": {"fieldPath": "status.podIP"}}
    pod = made(spec={"additional_envs": {"VLLM_HOST_IP": "10.0.0.1", "NUMBER_GPUS": "1"}})
    assert [item for item in container(pod)["env"] if item["name"] == "VLLM_HOST_IP"] == [
        {"name": "VLLM_HOST_IP", "value": "10.0.0.1"}
    ]


def test_match_expressions_hold_beside_any_affinity():
    wanted = {"key": "gpu", "operator": "In", "values": ["h200"]}
    term = {"matchExpressions": [{"key": "zone", "operator": "Exists"}]}
    node = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}
    pod = made(match_expressions=[wanted], affinity={"nodeAffinity": node, "podAffinity": {}})
    required = pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    (found,) = required["nodeSelectorTerms"]
    assert found["matchExpressions"] == [{"key": "zone", "operator": "Exists"}, wanted]
    alone = made(match_expressions=[wanted])["spec"]["affinity"]["nodeAffinity"]
    assert alone["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"] == [
        {"matchExpressions": [wanted]}
    ]


def test_everything_has_arcadias_labels_the_leases_and_its_owner():
    pod = made(queue_name="gpus", labels={"team": "a", "airflow-arcadia/lease": "not-this"})
    labels = pod["metadata"]["labels"]
    assert labels["app.kubernetes.io/name"] == "answer-1-worker"
    assert labels["arcadia.kubeagi.k8s.com.cn/worker"] == "answer-1"
    assert labels["airflow-arcadia/lease"] == "answer-1"
    assert labels["kueue.x-k8s.io/queue-name"] == "gpus"
    (owner,) = pod["metadata"]["ownerReferences"]
    assert owner == {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "name": "answer-1",
        "uid": "u-1",
    }


def test_the_service_has_arcadias_name_and_port():
    worker = WorkerSpec(name="answer-1", model="m")
    placement = manifest.placement(worker.name, PodSettings(), "ns", {})
    service = manifest.service(worker.at(placement), LEASE, PodSettings())
    assert service["metadata"]["name"] == "answer-1-worker"
    assert service["spec"]["ports"] == [
        {"name": "http", "port": 21002, "targetPort": "http", "protocol": "TCP"}
    ]
    assert placement.url == "http://answer-1-worker.ns.svc:21002"


def test_the_longest_name_is_still_a_dns_label():
    lease = Identity("d", "r", "g" * 200).lease_name
    assert len(lease) <= MAX_NAME
    assert len(manifest.object_name(f"{lease}-99")) <= 63


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"imge": "x"}, "Did you mean 'image'"),
        ({"worker_url": "http://{pod}"}, "unknown field"),
        ({"loader": {"args": []}, "model_volume": {"emptyDir": {}}}, "loader has no image"),
    ],
)
def test_settings_that_make_no_sense_are_named_at_the_door(settings: dict[str, Any], said: str):
    with pytest.raises(ArcadiaConfigError, match=said):
        PodSettings.parse(settings)


@pytest.mark.parametrize("name", ["HF_TOKEN", "OPENAI_API_KEY", "DB_PASSWORD", "AWS_SECRET_ACCESS_KEY"])
def test_a_variable_that_looks_like_a_secret_is_refused(name: str):
    with pytest.raises(ArcadiaConfigError, match=name):
        refuse_secrets({name: "x"})
    refuse_secrets({"HF_TOKEN_PATH": "/f", "TOKENIZERS_PARALLELISM": "false", "NCCL_SOCKET_IFNAME": "eth0"})


@pytest.mark.parametrize(
    ("settings", "secrets", "gateway", "ports"),
    [
        ({}, SECRETS, True, {"http": 21002, "fastchat": 21003}),
        ({}, SECRETS, False, {"http": 21002}),
        ({}, {}, True, {"http": 21002}),
        ({"fastchat_port": None}, SECRETS, True, {"http": 21002}),
        ({"fastchat_port": "9000"}, SECRETS, True, {"http": 21002, "fastchat": 9000}),
    ],
)
def test_a_gateway_reaches_a_worker_with_a_key_at_a_port_of_its_own(
    settings: dict[str, Any], secrets: dict[str, str], gateway: bool, ports: dict[str, int]
):
    parsed = PodSettings.parse({"image": "worker:1", **settings})
    placement = manifest.placement("answer-1", parsed, "ns", secrets, gateway=gateway)
    worker = WorkerSpec(name="answer-1", model="m").at(placement)
    service = manifest.service(worker, LEASE, parsed)
    assert {port["name"]: port["port"] for port in service["spec"]["ports"]} == ports
    pod = container(manifest.pod(worker, LEASE, parsed, secrets))
    assert {port["name"]: port["containerPort"] for port in pod["ports"]} == ports
    port = ports.get("fastchat", 21002)
    assert placement.fastchat_url == f"http://answer-1-worker.ns.svc:{port}"
