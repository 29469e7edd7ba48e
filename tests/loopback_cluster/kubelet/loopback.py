"""The API server, the kubelet, the scheduler and the Service proxy, in one thread with its own event loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

from airflow_arcadia.ports import free_port
from tests.loopback_cluster.api.access import Fault
from tests.loopback_cluster.api.server import ApiServer
from tests.loopback_cluster.kubelet import processes
from tests.loopback_cluster.kubelet.client import ApiClient
from tests.loopback_cluster.kubelet.images import Image
from tests.loopback_cluster.kubelet.kubelet import Kubelet
from tests.loopback_cluster.kubelet.node import Node
from tests.loopback_cluster.kubelet.proxy import ServiceProxy
from tests.loopback_cluster.kubelet.scheduler import Scheduler

TOKEN = "of-airflow"
_CALL_S = 60.0
_USUAL: dict[str, str] = {"cpu": "64", "memory": "512Gi", "pods": "110", "nvidia.com/gpu": "2"}


class Loopback:
    """A cluster of one node on this machine's loopback addresses.

    :param root: folder for pods' files and claims.
    :param images: image name → image; more may be added while it runs.
    :param capacity: what the node has, in place of the usual 64 CPUs, 512Gi and 2 GPUs.
    :param labels: of the node, beside the usual ones.
    """

    def __init__(
        self,
        root: Path,
        images: Mapping[str, Image],
        capacity: Mapping[str, str] | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> None:
        self.root = root
        self.images = dict(images)
        self.api = ApiServer(free_port())
        self._capacity = _USUAL | dict(capacity or {})
        self._labels = dict(labels or {})
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="loopback-cluster", daemon=True)
        self._parts: list[asyncio.Task[None]] = []

    @property
    def url(self) -> str:
        """The API's address."""
        return f"http://127.0.0.1:{self.api.port}"

    def call(self, work: Coroutine[Any, Any, Any], timeout_s: float = _CALL_S) -> Any:
        """Run something in the cluster's thread."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout_s)

    def start(self) -> None:
        """Start all of it."""
        (self.root / "kubelet").mkdir(parents=True)
        self._thread.start()
        self.call(self.api.start())
        self.call(self._start())

    async def _start(self) -> None:
        self._client = ApiClient(self.url)
        self._node = Node(self._client, self._capacity, self._labels)
        node_env = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(self.api.port)}
        self.kubelet = Kubelet(self._client, self.root / "kubelet", self.images, node_env)
        self.api.logs = self.kubelet.logs
        await self._node.register()
        parts = [
            self.kubelet.run(),
            Scheduler(self._client, "gpu-node-0").run(),
            ServiceProxy(self._client).run(),
        ]
        self._parts += [asyncio.create_task(part) for part in parts]

    def run_controller(self, controller: Coroutine[Any, Any, None]) -> None:
        """Run a controller until the cluster stops."""

        async def start() -> None:
            self._parts.append(asyncio.create_task(controller))

        self.call(start())

    def stop(self) -> None:
        """Stop all of it; no process of a pod is left. Raises what a part of it died of."""
        try:
            self.call(self._stop())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    async def _stop(self) -> None:
        failures = [part.exception() for part in self._parts if part.done() and not part.cancelled()]
        for part in self._parts:
            part.cancel()
        await asyncio.gather(*self._parts, return_exceptions=True)
        await self._client.close()
        await self.api.stop()
        # What still serves a request, such as the log of a lost node that somebody follows.
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
        for failure in failures:
            if failure is not None:
                raise failure

    def stop_api(self) -> None:
        """The API server is away; its objects and the pods stay."""
        self.call(self.api.stop())

    def start_api(self) -> None:
        """It is back, with a history that begins now; Airflow's first requests meet no Roles yet."""
        self.api.access.restart()
        self.call(self.api.start())

    @contextlib.contextmanager
    def api_away(self) -> Any:
        """The API server is away within the block."""
        self.stop_api()
        try:
            yield
        finally:
            self.start_api()

    def obey(self, documents: Sequence[dict[str, Any]], namespace: str = "tests", token: str = TOKEN) -> None:
        """Hold a token, by default Airflow's, to the Roles among these documents, bound in ``namespace``.

        What a manifest has beside them (ServiceAccount, RoleBinding) is passed over, and so is the
        namespace it was written for.
        """
        roles = [doc for doc in documents if doc and doc.get("kind", "Role") == "Role"]
        bound = [{**role, "metadata": {**role.get("metadata", {}), "namespace": namespace}} for role in roles]
        self.api.access.roles[token] = bound

    def obey_all(self) -> None:
        """Airflow's token may do everything again."""
        self.api.access.roles.pop(TOKEN, None)
        self.api.access.denied.clear()

    def deny(self, verb: str, resource: str) -> None:
        """Take one right away, such as ``("create", "pods")``; the rest stays as it is."""
        if TOKEN not in self.api.access.roles:
            every = {"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}
            self.obey([{"kind": "Role", "rules": [every]}])
        self.api.access.denied.add((verb, resource))

    def fail(
        self, code: int, *, verb: str | None = None, resource: str | None = None, times: int = 1
    ) -> None:
        """Answer the next requests of Airflow's token with an error.

        :param verb: only these, such as ``get``, ``list``, ``watch``, ``create``, ``delete``.
        :param resource: only these, such as ``pods`` or ``pods/log``.
        """
        self.api.access.faults.append(Fault(TOKEN, code, verb, resource, times))

    def lose_node(self, evict_after_s: float | None = 2.0) -> None:
        """The machine loses its power; returns when the control plane has noticed.

        The node is NotReady, its pods go on saying Running with condition Ready False, and logs cannot be
        read. Later the taint manager marks the pods for deletion, and they stay so.

        :param evict_after_s: how long the pods' usual patience of 300 s takes here; None for ever.
        """

        async def lose() -> None:
            await self.kubelet.fall_silent()
            await self._node.be_silent()
            if evict_after_s is not None:
                self._parts.append(asyncio.create_task(self._node.evict_all(evict_after_s)))

        self.call(lose())

    def return_node(self) -> None:
        """The machine is up again: pods that were marked for deletion go, the others have failed."""

        async def come_back() -> None:
            await self._node.be_ready()
            await self.kubelet.come_back()

        self.call(come_back())

    def evict(self, name: str, namespace: str = "tests") -> None:
        """The kubelet ends a pod because its node has too little memory."""

        async def evict() -> None:
            self.kubelet.evict(namespace, name)

        self.call(evict())

    def claim_folder(self, name: str, namespace: str = "tests") -> Path:
        """The folder behind a PersistentVolumeClaim, to put files into."""
        folder = self.kubelet.claims(namespace) / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def fill_claim(self, name: str, files: Path, namespace: str = "tests") -> None:
        """Let a PersistentVolumeClaim have these files, which are not copied."""
        folder = self.kubelet.claims(namespace) / name
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.symlink_to(files, target_is_directory=True)

    def pids(self, name: str, namespace: str = "tests") -> list[int]:
        """Processes of a pod on this machine."""

        async def look() -> list[int]:
            return processes.of(self.kubelet.find(namespace, name).uid)

        found: list[int] = self.call(look())
        return found
