"""What the pages about Kubernetes say is what the code has."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from airflow_arcadia.hooks.arcadia import ArcadiaHook
from airflow_arcadia.launchers.pod.settings import PodSettings
from airflow_arcadia.provider_info import get_provider_info
from airflow_arcadia.ray_cluster.kuberay.settings import KubeRaySpec
from tests.conftest import ROOT
from tests.deploy.manifests import everything

PAGE = (ROOT / "docs" / "how-to" / "kubernetes.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    """The text under a heading."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found, f"the page has no section {title}"
    return found[1]


def blocks(language: str, page: str = PAGE) -> list[str]:
    """The code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


def test_the_dag_can_be_loaded_and_its_settings_parsed(monkeypatch: pytest.MonkeyPatch):
    (source,) = blocks("python")
    names: dict[str, Any] = {}
    exec(compile(source, "docs/how-to/kubernetes.md", "exec"), names)  # noqa: S102 - the page's own program
    group = names["worker"]
    assert [task.task_id for task in group.dag.tasks if task.is_teardown] == ["qwen.teardown_worker"]
    assert PodSettings.parse(group.launches[0].pod).image == names["IMAGE"]
    spec = KubeRaySpec.parse(group.provision.spec_for(in_cluster=True))
    assert spec.nodes(2) == (1, 2)
    assert spec.model_volume == PodSettings.parse(group.launches[0].pod).model_volume


def test_the_readmes_dag_on_kubernetes_can_be_loaded():
    dag = blocks("python", (ROOT / "README.md").read_text(encoding="utf-8"))[1]
    exec(compile(dag, "README.md", "exec"), {})  # noqa: S102 - the page's own program


def test_the_connections_are_json_of_keys_that_the_hook_reads(monkeypatch: pytest.MonkeyPatch):
    connections = dict(re.findall(r"export (AIRFLOW_CONN_\w+)='(.*?)'\n", PAGE, re.DOTALL))
    kubernetes, arcadia = (json.loads(text) for text in connections.values())
    (known,) = get_provider_info()["connection-types"]
    assert set(arcadia["extra"]) <= set(known["conn-fields"])
    assert kubernetes["conn_type"] == "kubernetes"
    for name, value in connections.items():
        monkeypatch.setenv(name, value)
    hook = ArcadiaHook()
    assert hook.launcher_type(None).name == "pod"
    assert hook.kubernetes.namespace == "arcadia"
    assert set(hook.secrets) == {"api-key", "batch-token", "ray-token", "hf-token"}


def test_every_file_and_object_the_page_names_is_there():
    for link in re.findall(r"\]\(([^)#]+)\)", PAGE):
        assert (ROOT / "docs" / "how-to" / link).exists(), link
    for path in re.findall(r"(?:-f|-k) ((?:deploy|docker)\S*)", PAGE):
        assert (ROOT / path).exists(), path
    names = {(item["kind"].lower(), item["metadata"]["name"]) for item in everything()}
    assert {("job", "model-download"), ("raycluster", "gpus"), ("namespace", "arcadia")} <= names
    roles = set(re.findall(r"airflow-arcadia-?\w*", section("2. KubeRay, the namespace, the rights")))
    assert {"airflow-arcadia", "airflow-arcadia-ray", "airflow-arcadia-workers"} <= roles


def test_the_failure_table_names_every_reason_the_code_knows():
    source = Path(sys.modules["airflow_arcadia.kubernetes.pod_status"].__file__ or "").read_text(
        encoding="utf-8"
    )
    table = (ROOT / "docs" / "troubleshooting" / "kubernetes.md").read_text(encoding="utf-8")
    known = {"OOMKilled", "Evicted", "DeadlineExceeded", "NodeNotReady", "CrashLoopBackOff", "Unschedulable"}
    assert known <= set(re.findall(r"\w+", source))
    for reason in known | {"ImagePullBackOff", "InvalidImageName", "CreateContainerConfigError"}:
        assert f"`{reason}`" in table
