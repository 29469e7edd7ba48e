"""A cluster for tests: the loopback pair in a thread of its own, or any cluster of a kubeconfig."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from kubernetes import client, config  # noqa: TID253 - the test's own look at the cluster

from airflow_arcadia.ports import free_port
from tests.conftest import ROOT, wait_for
from tests.kubernetes.api.server import ApiServer
from tests.kubernetes.kubelet.kubelet import Kubelet

KUBECONFIG_VARIABLE = "ARCADIA_TEST_KUBECONFIG"
TOKEN = "of-airflow"
WORKER_IMAGE = "registry.test/arcadia-worker:0"
PYTHON_IMAGE = "registry.test/python:3"


class Loopback:
    """The API server and the kubelet, in one thread with its own event loop."""

    def __init__(self, root: Path, worker_python: str, gpus: int = 2) -> None:
        self.root = root
        self.api = ApiServer(free_port())
        self.images = {
            PYTHON_IMAGE: image_of(sys.executable),
            WORKER_IMAGE: image_of(worker_python),
        }
        self._gpus = gpus
        self.kubelet: Kubelet | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="loopback-cluster", daemon=True)
        self._kubelet_task: asyncio.Task[None] | None = None
        self.controllers: list[asyncio.Task[None]] = []

    @property
    def url(self) -> str:
        """The API's address."""
        return f"http://127.0.0.1:{self.api.port}"

    def call(self, work: Coroutine[Any, Any, Any], timeout_s: float = 30.0) -> Any:
        """Run something in the cluster's thread."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout_s)

    def start(self) -> None:
        """Start both."""
        (self.root / "kubelet").mkdir(parents=True)
        self._thread.start()
        self.call(self.api.start())
        self.call(self._start_kubelet())

    async def _start_kubelet(self) -> None:
        capacity = {"nvidia.com/gpu": str(self._gpus)}
        self.kubelet = Kubelet(self.url, self.root / "kubelet", self.images, capacity)
        self.api.logs = self.kubelet.logs
        self._kubelet_task = asyncio.create_task(self.kubelet.run())

    def run_controller(self, controller: Coroutine[Any, Any, None]) -> None:
        """Run a controller until the cluster stops."""

        async def start() -> None:
            self.controllers.append(asyncio.create_task(controller))

        self.call(start())

    def stop(self) -> None:
        """Stop both; no process of a pod is left."""

        async def end() -> None:
            tasks = [*self.controllers, *([self._kubelet_task] if self._kubelet_task else [])]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.api.stop()

        self.call(end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def stop_api(self) -> None:
        """The API server is away; its objects and the pods stay."""
        self.call(self.api.stop())

    def start_api(self) -> None:
        """It is back, with a history that begins now."""
        self.call(self.api.start())

    def obey(self, roles: Sequence[dict[str, Any]]) -> None:
        """Hold the token of the kubeconfig to these Roles."""
        self.api.access.roles[TOKEN] = list(roles)


def image_of(python: str) -> dict[str, str]:
    """The environment of an image that has this Python, and this checkout's package."""
    path = f"{Path(python).parent}:/usr/local/bin:/usr/bin:/bin"
    return {"PATH": path, "PYTHONPATH": str(ROOT), "HOME": str(Path.home()), "LANG": "C.UTF-8"}


@dataclass
class Cluster:
    """What the suite needs of a cluster, whichever it is.

    :param loopback: the pair; None for a cluster of ``ARCADIA_TEST_KUBECONFIG``.
    """

    kubeconfig: Path
    namespace: str
    worker_image: str
    python_image: str
    loopback: Loopback | None

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

    @property
    def airflow_connection(self) -> dict[str, Any]:
        """The Airflow connection to it."""
        return {
            "conn_type": "kubernetes",
            "extra": {"kube_config_path": str(self.kubeconfig), "namespace": self.namespace},
        }

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
    """The cluster of ``ARCADIA_TEST_KUBECONFIG``, if one is named."""
    path = os.environ.get(KUBECONFIG_VARIABLE)
    if not path:
        return None
    return Cluster(
        kubeconfig=Path(path),
        namespace=os.environ.get("ARCADIA_TEST_NAMESPACE", "default"),
        worker_image=os.environ.get("ARCADIA_TEST_WORKER_IMAGE", "vllm/vllm-openai-cpu:latest"),
        python_image=os.environ.get("ARCADIA_TEST_PYTHON_IMAGE", "python:3.11-slim"),
        loopback=None,
    )
