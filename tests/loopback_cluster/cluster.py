"""A cluster for tests: the loopback one, or any cluster of a kubeconfig."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from kubernetes import client, config  # noqa: TID253 - the test's own look at the cluster

from tests.conftest import ROOT, wait_for
from tests.loopback_cluster.controllers.base import STAND_IN_LABEL, Controller
from tests.loopback_cluster.kubelet.images import Image
from tests.loopback_cluster.kubelet.loopback import TOKEN, Loopback

__all__ = ["TOKEN", "Cluster", "Image", "Loopback", "image_of", "loopback_images", "write_kubeconfig"]

KUBECONFIG_VARIABLE = "ARCADIA_TEST_KUBECONFIG"
NAMESPACE_PREFIX = "arcadia-test-"
WORKER_IMAGE = "registry.test/arcadia-worker:0"
PYTHON_IMAGE = "registry.test/python:3"


def image_of(python: str, *entrypoint: str, **env: str) -> Image:
    """An image that has this Python, and this checkout's package.

    :param entrypoint: what it runs where a container has no command.
    :param env: beside what finding the Python and the package takes.
    """
    path = f"{Path(python).parent}:/usr/local/bin:/usr/bin:/bin"
    usual = {"PATH": path, "PYTHONPATH": str(ROOT), "HOME": str(Path.home()), "LANG": "C.UTF-8"}
    return Image(usual | env, entrypoint)


def loopback_images(worker_python: str) -> dict[str, Image]:
    """What can be pulled: Python, the worker's environment, and the worker as the package ships it."""
    return {
        PYTHON_IMAGE: image_of(sys.executable),
        WORKER_IMAGE: image_of(worker_python, "python", "-m", "airflow_arcadia.runtime"),
    }


@dataclass
class Cluster:
    """What the suite needs of a cluster, whichever it is.

    :param namespace: of the test; in a cluster of ``ARCADIA_TEST_KUBECONFIG`` each test has one of its own.
    :param loopback: the pair; None for a cluster of ``ARCADIA_TEST_KUBECONFIG``.
    """

    kubeconfig: Path
    namespace: str
    worker_image: str
    python_image: str
    loopback: Loopback | None
    programs: dict[str, tuple[str, list[str]]] = field(default_factory=dict)
    """Image that no registry has → image and command in its place: how stand-ins run a test's program."""
    _stops: list[Callable[[], None]] = field(default_factory=list)

    @property
    def core(self) -> client.CoreV1Api:
        """The official client, with every right."""
        return client.CoreV1Api(self._client)

    @property
    def custom(self) -> client.CustomObjectsApi:
        """The official client of custom resources, with every right."""
        return client.CustomObjectsApi(self._client)

    @property
    def coordination(self) -> client.CoordinationV1Api:
        """The official client of leases, with every right."""
        return client.CoordinationV1Api(self._client)

    @property
    def _client(self) -> client.ApiClient:
        context = "admin" if self.loopback else None
        return config.new_client_from_config(str(self.kubeconfig), context=context)

    def run_controller(self, kind: type[Controller], **more: Any) -> None:
        """Run a stand-in until the test ends, unless the cluster has that operator itself.

        :param more: further arguments of the stand-in.
        """
        context = "admin" if self.loopback else None
        controller = kind(self.kubeconfig, self.namespace, context, **more)
        if self.loopback:
            self.loopback.run_controller(controller.run())
            return
        if self.has_operator(kind):
            return
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, name=kind.__name__, daemon=True)
        thread.start()
        running = asyncio.run_coroutine_threadsafe(controller.run(), loop)

        def stop() -> None:
            running.cancel()
            loop.call_soon_threadsafe(loop.stop)
            thread.join()

        self._stops.append(stop)

    def has_operator(self, kind: type[Controller]) -> bool:
        """Whether somebody else than a stand-in has defined that operator's resource."""
        return any(
            found.metadata.name == kind.definition["metadata"]["name"]
            and STAND_IN_LABEL not in (found.metadata.labels or {})
            for found in client.ApiextensionsV1Api(self._client).list_custom_resource_definition().items
        )

    def make_namespace(self) -> None:
        """Give the test a namespace of its own, in which nobody has left anything."""
        body = {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"generateName": NAMESPACE_PREFIX, "labels": {STAND_IN_LABEL: "true"}},
        }
        self.namespace = self.core.create_namespace(body).metadata.name

        def accounts() -> bool:
            found = self.core.list_namespaced_service_account(self.namespace).items
            return "default" in {account.metadata.name for account in found}

        wait_for(accounts, 60, "the namespace's service account")

    def remove_namespace(self) -> None:
        """Delete it with all that is in it, quotas and what did not go included."""
        self.core.delete_namespace(self.namespace)

    def remove_definitions(self) -> None:
        """Delete the resources that stand-ins defined."""
        api = client.ApiextensionsV1Api(self._client)
        for found in api.list_custom_resource_definition(label_selector=STAND_IN_LABEL).items:
            api.delete_custom_resource_definition(found.metadata.name)

    def close(self) -> None:
        """End what runs for the test beside the cluster."""
        while self._stops:
            self._stops.pop()()

    @property
    def airflow_connection(self) -> dict[str, Any]:
        """The Airflow connection to it."""
        return {
            "conn_type": "kubernetes",
            "extra": {"kube_config_path": str(self.kubeconfig), "namespace": self.namespace},
        }

    def manifest(self, name: str, script: str, **spec: Any) -> dict[str, Any]:
        """A pod with one container that runs a Python script.

        :param spec: more of the pod's spec; ``container`` is more of the container's.
        """
        container = {
            "name": "main",
            "image": self.python_image,
            "command": ["python3", "-u", "-c", script],
            **spec.pop("container", {}),
        }
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name},
            "spec": {"containers": [container], "restartPolicy": "Never", **spec},
        }

    def run(self, manifest: dict[str, Any], *phases: str, timeout_s: float = 30.0) -> dict[str, Any]:
        """Create a pod, and wait until it is in one of these phases, or has succeeded."""
        self.core.create_namespaced_pod(self.namespace, manifest)
        return self.wait_for_phase(
            manifest["metadata"]["name"], *(phases or ("Succeeded",)), timeout_s=timeout_s
        )

    def log(self, name: str, **query: Any) -> str:
        """The pod's log."""
        # Preloaded, the client would give the text of a bytes object.
        answer = self.core.read_namespaced_pod_log(name, self.namespace, _preload_content=False, **query)
        text: str = answer.data.decode()
        return text

    def pod(self, name: str) -> dict[str, Any] | None:
        """The pod as JSON; None when there is none."""
        found = [p for p in self._client_json("pods") if p["metadata"]["name"] == name]
        return found[0] if found else None

    def wait_for_phase(self, name: str, *phases: str, timeout_s: float = 30.0) -> dict[str, Any]:
        """Wait until the pod is in one of these phases."""

        def there() -> dict[str, Any] | None:
            pod = self.pod(name)
            return pod if pod and pod["status"]["phase"] in phases else None

        found: dict[str, Any] = wait_for(there, timeout_s, f"pod {name} to be {' or '.join(phases)}")
        return found

    def _client_json(self, plural: str) -> list[dict[str, Any]]:
        answer = self.core.list_namespaced_pod(self.namespace)
        items: list[dict[str, Any]] = self._client.sanitize_for_serialization(answer)["items"]
        return items


def write_kubeconfig(path: Path, url: str) -> Path:
    """Two contexts: ``airflow`` (the default, with a token that roles hold for) and ``admin``."""
    users = [{"name": "airflow", "user": {"token": TOKEN}}, {"name": "admin", "user": {"token": "admin"}}]
    contexts = [
        {"name": name, "context": {"cluster": "loopback", "user": name}} for name in ("airflow", "admin")
    ]
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "loopback", "cluster": {"server": url}}],
        "users": users,
        "contexts": contexts,
        "current-context": "airflow",
    }
    path.write_text(yaml.safe_dump(document))
    return path


def named_cluster() -> Cluster | None:
    """The cluster of ``ARCADIA_TEST_KUBECONFIG``, if one is named; without a namespace yet."""
    path = os.environ.get(KUBECONFIG_VARIABLE)
    if not path:
        return None
    return Cluster(
        kubeconfig=Path(path),
        namespace="",
        worker_image=os.environ.get("ARCADIA_TEST_WORKER_IMAGE", "vllm/vllm-openai-cpu:latest"),
        python_image=os.environ.get("ARCADIA_TEST_PYTHON_IMAGE", "python:3.11-slim"),
        loopback=None,
    )
