"""The shipped manifests are what an API server, arcadia-config and the code's own labels accept."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from airflow_arcadia.config import ArcadiaConfig
from airflow_arcadia.kubernetes.config_map import KEY
from airflow_arcadia.kubernetes.kinds import WORKER_LABEL
from airflow_arcadia.kubernetes.pod_template import CACHE_PATH
from airflow_arcadia.ray_cluster.kuberay.manifest import CLUSTER_LABEL
from airflow_arcadia.ray_cluster.kuberay.settings import KubeRaySpec
from airflow_arcadia.worker import DEFAULT_FASTCHAT_PORT, DEFAULT_PORT, PlacedWorker
from tests.conftest import ROOT
from tests.deploy.manifests import DEPLOY, NAMESPACE, documents, everything
from tests.loopback_cluster.api.kinds import BUILT_IN, Kind
from tests.loopback_cluster.api.schema import check

BUILT_IN_TOO = (
    *BUILT_IN,
    Kind("", "v1", "serviceaccounts", "ServiceAccount", "V1ServiceAccount"),
    Kind("batch", "v1", "jobs", "Job", "V1Job"),
    Kind("rbac.authorization.k8s.io", "v1", "roles", "Role", "V1Role"),
    Kind("rbac.authorization.k8s.io", "v1", "rolebindings", "RoleBinding", "V1RoleBinding"),
    Kind("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy", "V1NetworkPolicy"),
)
MODELS = {(kind.api_version, kind.name): kind for kind in BUILT_IN_TOO}


def templates() -> list[Any]:
    """Every pod template, with what it belongs to."""
    found = []
    for item in everything():
        name = f"{item['kind']} {item['metadata']['name']}"
        spec = item.get("spec") or {}
        if item["kind"] == "RayCluster":
            groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
            found += [pytest.param(group["template"], id=name) for group in groups]
        elif "template" in spec:
            found.append(pytest.param(spec["template"], id=name))
    return found


@pytest.mark.parametrize("item", everything(), ids=lambda i: f"{i['kind']} {i['metadata']['name']}")
def test_an_object_is_of_the_namespace_and_passes_the_strict_schema(item: dict[str, Any]):
    kind = MODELS.get((item["apiVersion"], item["kind"]))
    if item["kind"] == "Namespace":
        assert item["metadata"]["name"] == NAMESPACE
    else:
        assert item["metadata"]["namespace"] == NAMESPACE
    if kind is None:
        assert item["kind"] in {"RayCluster", "Worker"}
    else:
        check(kind, item)


@pytest.mark.parametrize("template", templates())
def test_a_pod_of_ours_is_what_the_restricted_level_allows(template: dict[str, Any]):
    pod = {"apiVersion": "v1", "kind": "Pod", **template}
    pod["metadata"] = {"name": "p", **pod.get("metadata", {})}
    check(MODELS["v1", "Pod"], pod)
    spec = pod["spec"]
    # Only the lease watcher talks to the API server; what runs a model's code does not.
    is_watcher = spec.get("serviceAccountName") == "arcadia-lease-watcher"
    assert spec["automountServiceAccountToken"] is is_watcher
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in spec["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        }
    assert not any("hostPath" in volume for volume in spec.get("volumes", ()))


def test_kustomize_names_files_that_are_there():
    listed = yaml.safe_load((DEPLOY / "kustomization.yaml").read_text())
    assert listed["namespace"] == NAMESPACE
    assert {"rbac.yaml", "namespace.yaml"} <= set(listed["resources"])
    assert all((DEPLOY / name).is_file() for name in listed["resources"])


def test_the_config_map_is_an_arcadia_config_for_the_ray_cluster_and_controller_beside_it():
    (config_map,) = documents("arcadia-config.yaml")
    config = ArcadiaConfig.from_yaml(config_map["data"][KEY])
    (ray,) = documents("raycluster.yaml")
    head = f"{ray['metadata']['name']}-head-svc.{NAMESPACE}.svc"
    assert config.ray_clusters[0].head_address == f"{head}:6379"
    assert config.ray_clusters[0].dashboard_url == f"http://{head}:8265"
    service = next(d for d in documents("fastchat-controller.yaml") if d["kind"] == "Service")
    port = service["spec"]["ports"][0]["port"]
    assert config.gateway.controller == f"http://{service['metadata']['name']}.{NAMESPACE}.svc:{port}"


def test_the_ray_cluster_shares_memory_and_model_with_its_ranks():
    (ray,) = documents("raycluster.yaml")
    (group,) = ray["spec"]["workerGroupSpecs"]
    spec = group["template"]["spec"]
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    mounts = {mount["mountPath"]: mount["name"] for mount in spec["containers"][0]["volumeMounts"]}
    assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
    assert volumes[mounts[KubeRaySpec().model_mount_path]]["persistentVolumeClaim"]["claimName"] == "models"
    assert CACHE_PATH in mounts
    limits = spec["containers"][0]["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == group["rayStartParams"]["num-gpus"]
    assert ray["spec"]["authOptions"] == {"mode": "token"}
    lock = (ROOT / "requirements" / "worker.txt").read_text()
    assert f"\nray=={ray['spec']['rayVersion']}\n" in lock


def test_the_workers_manifest_says_both_variables_and_its_limits():
    (worker,) = documents("worker.yaml")
    envs = {env["name"]: env["value"] for env in worker["spec"]["additionalEnvs"]}
    spec = PlacedWorker.from_env(envs | {"FASTCHAT_MODEL_NAME_PATH": "/data/models/qwen-7b"})
    assert (spec.num_gpus, spec.ray_cluster_index) == (2, 0)
    assert worker["spec"]["type"] == "fastchat-vllm"
    assert worker["spec"]["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_network_policies_choose_pods_by_labels_that_pods_have():
    policies = {p["metadata"]["name"]: p["spec"] for p in documents("networkpolicy.yaml")}
    chosen = {
        name: {
            *(e["key"] for e in spec["podSelector"].get("matchExpressions", ())),
            *spec["podSelector"].get("matchLabels", {}).values(),
        }
        for name, spec in policies.items()
    }
    assert chosen == {
        "arcadia-workers": {WORKER_LABEL},
        "arcadia-ray": {CLUSTER_LABEL},
        "fastchat-controller": {"fastchat-controller"},
    }
    airflow, gateway, ray = policies["arcadia-workers"]["ingress"]
    assert airflow["ports"] == [{"port": DEFAULT_PORT}]
    (deployment,) = (d for d in documents("lease-watcher.yaml") if d["kind"] == "Deployment")
    watcher = {"podSelector": {"matchLabels": deployment["spec"]["template"]["metadata"]["labels"]}}
    assert watcher in airflow["from"], "the lease watcher asks workers for their batch's progress"
    assert gateway["ports"] == [{"port": DEFAULT_PORT}, {"port": DEFAULT_FASTCHAT_PORT}]
    # Whoever runs a model's code reaches neither, and what Ray and NCCL choose is open to it.
    open_to_ray = [range(p["port"], p["endPort"] + 1) for p in ray["ports"] if p.get("protocol") != "UDP"]
    for port, is_open in {
        DEFAULT_PORT: False,
        DEFAULT_FASTCHAT_PORT: False,
        10002: True,
        40000: True,
    }.items():
        assert any(port in ports for ports in open_to_ray) is is_open
    # The label that Arcadia's chart gives its FastChat pod, which calls the workers itself.
    assert {"control-plane": "arcadia-fastchat"} in [s["podSelector"]["matchLabels"] for s in gateway["from"]]
    # An ingress without `from` is open to everybody.
    assert all(rule["from"] for spec in policies.values() for rule in spec["ingress"])


def test_no_manifest_has_a_secret_in_it():
    assert not [item for item in everything() if item["kind"] == "Secret"]
    for path in DEPLOY.glob("*.yaml"):
        assert not re.search(r"(?i)(password|api[-_]?key|token):\s*\S*[a-z0-9]{16}", path.read_text())
