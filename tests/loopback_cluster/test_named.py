"""A cluster of ARCADIA_TEST_KUBECONFIG: each test has a namespace of its own, and nothing is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from kubernetes import client, config  # noqa: TID253

from tests.conftest import ROOT, wait_for
from tests.loopback_cluster.cluster import KUBECONFIG_VARIABLE, NAMESPACE_PREFIX, PYTHON_IMAGE
from tests.loopback_cluster.controllers.arcadia import Arcadia
from tests.loopback_cluster.controllers.base import STAND_IN_LABEL

PODS = "tests/kubernetes/test_worker_pod.py"
QUOTA = f"{PODS}::test_a_used_up_quota_is_named_and_may_be_tried_again"
LIFE = f"{PODS}::test_a_pod_is_launched_ready_and_torn_down_with_all_that_belongs_to_it"
CONTRACT = "tests/kubernetes/test_launchers.py::test_a_launched_worker_lives"


pytestmark = pytest.mark.cluster  # its own, beside the fixture's


@pytest.fixture
def kubeconfig(tmp_path: Path) -> Iterator[Path]:
    """Of a loopback cluster that runs by itself, as a real one does."""
    path = tmp_path / "kubeconfig"
    running = subprocess.Popen([sys.executable, "-m", "tests.loopback_cluster", str(path)], cwd=ROOT)
    try:
        wait_for(path.exists, 30, "the cluster to answer")
        yield path
    finally:
        running.send_signal(signal.SIGTERM)
        running.wait(30)


def suite(kubeconfig: Path, *tests: str) -> str:
    """Run tests against it; their summary."""
    env = os.environ | {
        KUBECONFIG_VARIABLE: str(kubeconfig),
        "ARCADIA_TEST_PYTHON_IMAGE": PYTHON_IMAGE,
        "ARCADIA_TEST_SHARED_NETWORK": "1",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    told = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stdout[-3000:]
    return told.stdout


def test_tests_do_not_meet_each_others_objects_and_leave_nothing(kubeconfig: Path):
    # The first leaves a quota of no pods; the contract's third launcher installs Arcadia's resource.
    assert "5 passed" in suite(kubeconfig, QUOTA, LIFE, CONTRACT)
    api = config.new_client_from_config(str(kubeconfig))
    extensions = client.ApiextensionsV1Api(api)
    assert extensions.list_custom_resource_definition().items == []

    def namespaces() -> set[str]:
        names = {space.metadata.name for space in client.CoreV1Api(api).list_namespace().items}
        return {name for name in names if name.startswith(NAMESPACE_PREFIX)}

    wait_for(lambda: namespaces() == set(), 30, "the tests' namespaces to go")


def test_what_an_earlier_suite_left_is_not_taken_for_an_operator_and_what_is_one_is(kubeconfig: Path):
    extensions = client.ApiextensionsV1Api(config.new_client_from_config(str(kubeconfig)))
    body = {**Arcadia.definition, "metadata": {**Arcadia.definition["metadata"]}}
    body["metadata"]["labels"] = {STAND_IN_LABEL: "true"}
    extensions.create_custom_resource_definition(body)
    assert "3 passed" in suite(kubeconfig, CONTRACT)
    body["metadata"].pop("labels")
    extensions.create_custom_resource_definition(body)
    assert "2 passed, 1 skipped" in suite(kubeconfig, CONTRACT)
    assert len(extensions.list_custom_resource_definition().items) == 1
