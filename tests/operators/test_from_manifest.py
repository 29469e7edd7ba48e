"""A Worker manifest in the shape of Arcadia's documentation, read as an operator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from airflow_arcadia.exceptions import ArcadiaConfigError
from airflow_arcadia.operators.worker import ArcadiaLaunchWorkerOperator

DOCUMENTED = """
apiVersion: arcadia.kubeagi.k8s.com.cn/v1alpha1
kind: Worker
metadata: {name: qwen-7b, namespace: arcadia}
spec:
  additionalEnvs:
  - {name: NUMBER_GPUS, value: "2"}
  - {name: RAY_CLUSTER_INDEX, value: "1"}
  - {name: NCCL_DEBUG, value: INFO}
  creator: admin
  displayName: qwen-7b
  type: fastchat-vllm
  model: {kind: Models, name: qwen-7b-chat, namespace: arcadia}
  replicas: 0
  resources: {limits: {cpu: "4", memory: 16Gi, nvidia.com/gpu: "1"}}
  matchExpressions: [{key: gpu, operator: In, values: [a100]}]
"""


def read(tmp_path: Path, text: str = DOCUMENTED, **kwargs: Any) -> ArcadiaLaunchWorkerOperator:
    path = tmp_path / "worker.yaml"
    path.write_text(text)
    return ArcadiaLaunchWorkerOperator.from_manifest(path, task_id="launch", lease="a-lease", **kwargs)


def test_everything_the_manifest_says_is_passed_on(tmp_path: Path):
    operator = read(tmp_path)
    assert (operator.launcher, operator.num_gpus) == ("custom_resource", 2)
    assert operator.model == {"kind": "Models", "name": "qwen-7b-chat", "namespace": "arcadia"}
    assert operator.custom_resource == {
        "name": "qwen-7b",
        "namespace": "arcadia",
        "creator": "admin",
        "display_name": "qwen-7b",
        "type": "fastchat-vllm",
        "resources": {"limits": {"cpu": "4", "memory": "16Gi", "nvidia.com/gpu": "1"}},
        "match_expressions": [{"key": "gpu", "operator": "In", "values": ["a100"]}],
        "ray_cluster_index": 1,
        "additional_envs": [{"name": "NCCL_DEBUG", "value": "INFO"}],
    }


def test_the_documentations_own_example_needs_only_a_model(tmp_path: Path):
    document = yaml.safe_load(DOCUMENTED)
    spec = document["spec"]
    del document["metadata"]
    kept = {key: spec[key] for key in ("additionalEnvs", "creator", "displayName", "resources")}
    text = yaml.safe_dump({**document, "spec": kept})
    with pytest.raises(ArcadiaConfigError, match=r"has no spec\.model"):
        read(tmp_path, text)
    operator = read(tmp_path, text, model="qwen", custom_resource={"runner": {"image": "ours:1"}})
    assert operator.model == "qwen"
    assert operator.custom_resource is not None
    assert operator.custom_resource["runner"] == {"image": "ours:1"}
    assert operator.custom_resource["creator"] == "admin"


def test_absent_variables_have_arcadias_documented_defaults(tmp_path: Path):
    document = yaml.safe_load(DOCUMENTED)
    del document["spec"]["additionalEnvs"]
    operator = read(tmp_path, yaml.safe_dump(document))
    assert operator.num_gpus == 1
    assert "ray_cluster_index" not in (operator.custom_resource or {})


MODEL = """
apiVersion: arcadia.kubeagi.k8s.com.cn/v1alpha1
kind: Model
metadata: {name: qwen-7b-chat, namespace: arcadia}
spec: {type: llm}
---
"""


def test_a_file_with_the_workers_model_is_taken_as_kubectl_takes_it(tmp_path: Path):
    assert read(tmp_path, MODEL + DOCUMENTED).num_gpus == 2
    with pytest.raises(ArcadiaConfigError, match="has 2 Workers in 3 documents"):
        read(tmp_path, f"{MODEL}{DOCUMENTED}\n---\n{DOCUMENTED}")
    with pytest.raises(ArcadiaConfigError, match="has 0 Workers in 2 documents"):
        read(tmp_path, f"{MODEL}{MODEL}")


def test_what_custom_resource_corrects_is_not_held_against_the_manifest(tmp_path: Path):
    text = DOCUMENTED.replace("type: fastchat-vllm", "type: fastchat")
    with pytest.raises(ArcadiaConfigError, match="type is 'fastchat'"):
        read(tmp_path, text)
    operator = read(tmp_path, text, custom_resource={"type": "fastchat-vllm"})
    assert (operator.custom_resource or {})["type"] == "fastchat-vllm"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (DOCUMENTED.replace("replicas: 0", "replicas: []"), r"spec\.replicas is a list, not a whole number"),
        (
            DOCUMENTED.replace("creator: admin", "creator: 3.10"),
            r"spec\.creator is 3\.1, a number",
        ),
        (DOCUMENTED + "  creator: twice\n", "the key 'creator' is there twice"),
        ("[" * 5000, "levels deep"),
    ],
)
def test_a_file_that_yaml_would_misread_is_refused(tmp_path: Path, text: str, said: str):
    with pytest.raises(ArcadiaConfigError, match=said):
        read(tmp_path, text)


def test_parameters_win_over_the_manifest(tmp_path: Path):
    operator = read(tmp_path, num_gpus=4, custom_resource={"ray_cluster_index": 0, "name": None})
    assert operator.num_gpus == 4
    assert operator.custom_resource is not None
    assert (operator.custom_resource["ray_cluster_index"], operator.custom_resource["name"]) == (0, None)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "Deployment"}, "kind of the manifest is 'Deployment'"),
        ({"apiVersion": "v1"}, "apiVersion of the manifest is 'v1'"),
        ({"specs": {}}, "unknown key 'specs'"),
        ({"spec.resource": {}}, "spec has the unknown key 'resource'"),
        ({"spec.replicas": 2}, r"spec\.replicas is 2"),
        ({"spec.type": "fastchat"}, "type is 'fastchat'"),
        ({"spec.resources": ["cpu"]}, r"spec\.resources is a list, not a mapping"),
        ({"spec.additionalEnvs": {"A": "1"}}, r"spec\.additionalEnvs is a dict, not a list"),
        ({"spec.additionalEnvs": [{"name": "NUMBER_GPUS", "value": "two"}]}, "NUMBER_GPUS is 'two'"),
        (
            {"spec.additionalEnvs": [{"name": "RAY_CLUSTER_INDEX", "value": "-1"}]},
            "RAY_CLUSTER_INDEX is '-1'",
        ),
        ({"spec.additionalEnvs": [{"name": "NUMBER_GPUS"}]}, "NUMBER_GPUS .* has no value"),
        (
            {"spec.additionalEnvs": [{"name": "HF_TOKEN", "value": "x"}]},
            "HF_TOKEN, which looks like a secret",
        ),
        ({"spec.additionalEnvs": ["A=1"]}, r"spec\.additionalEnvs\[0\] is 'A=1', not a mapping"),
        ({"spec.model": {"kind": "Model"}}, r"spec\.model has no name"),
        ({"spec.model": "qwen"}, r"spec\.model is 'qwen', not a mapping"),
    ],
)
def test_what_is_wrong_is_named_by_its_key(tmp_path: Path, change: dict[str, Any], said: str):
    document = yaml.safe_load(DOCUMENTED)
    for key, value in change.items():
        inner, _, last = key.rpartition(".")
        (document[inner] if inner else document)[last] = value
    with pytest.raises(ArcadiaConfigError, match=said):
        read(tmp_path, yaml.safe_dump(document))


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "0 documents"), (f"{DOCUMENTED}\n---\n{DOCUMENTED}", "2 documents"), ("{", "not valid YAML")],
)
def test_a_file_with_anything_but_one_document_is_refused(tmp_path: Path, text: str, said: str):
    with pytest.raises(ArcadiaConfigError, match=said):
        read(tmp_path, text)


def test_a_file_that_is_not_there_is_named():
    with pytest.raises(ArcadiaConfigError, match=r"'nowhere\.yaml' cannot be read"):
        ArcadiaLaunchWorkerOperator.from_manifest("nowhere.yaml", task_id="launch", lease="l", model="m")
