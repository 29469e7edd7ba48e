"""The kubelet of the node: starts a worker for each pod that is bound to it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from aiohttp import web

from tests.loopback_cluster.api.kinds import Target
from tests.loopback_cluster.api.status import ApiFailure
from tests.loopback_cluster.api.store import now
from tests.loopback_cluster.kubelet import logs
from tests.loopback_cluster.kubelet.client import STRATEGIC_PATCH, ApiClient, Object
from tests.loopback_cluster.kubelet.events import Recorder
from tests.loopback_cluster.kubelet.images import Image
from tests.loopback_cluster.kubelet.node import NODE
from tests.loopback_cluster.kubelet.pod import PodWorker

_EVICTED = "The node was low on resource: memory. Threshold quantity: 100Mi, available: 42Mi. "


class Kubelet:
    """Runs the pods of the node.

    :param root: folder for pods' files.
    :param images: image name → image; others cannot be pulled.
    :param node_env: what the node sets in every container, such as where the API is.
    """

    def __init__(
        self, api: ApiClient, root: Path, images: dict[str, Image], node_env: dict[str, str]
    ) -> None:
        self.api = api
        self.root = root
        self.images = images
        self.node_env = node_env
        self.events = Recorder(api, "kubelet", NODE)
        self.lost = False
        self._workers: dict[str, PodWorker] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._seen: dict[str, asyncio.Event] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._broken: asyncio.Future[None] | None = None

    async def run(self) -> None:
        """Follow the pods until cancelled; then no process of any of them is left."""
        self._broken = asyncio.get_running_loop().create_future()
        following = asyncio.create_task(self._follow())
        try:
            await asyncio.wait({following, self._broken}, return_when=asyncio.FIRST_COMPLETED)
            for done in (following, self._broken):
                if done.done():
                    done.result()
        finally:
            await _end([following, *self._tasks])

    async def _follow(self) -> None:
        async for kind, found in self.api.follow(f"/api/v1/pods?fieldSelector=spec.nodeName={NODE}"):
            self._see(kind, found)

    def claims(self, namespace: str) -> Path:
        """Where the claims of a namespace keep their files."""
        return self.root / "claims" / namespace

    async def changed(self, uid: str) -> None:
        """Wait until that pod is seen again."""
        event = self._seen.setdefault(uid, asyncio.Event())
        event.clear()
        await event.wait()

    def find(self, namespace: str, name: str) -> PodWorker:
        """The worker of a pod. Raises KeyError when this node has no such pod."""
        for worker in self._workers.values():
            meta = worker.pod["metadata"]
            if (meta["namespace"], meta["name"]) == (namespace, name):
                return worker
        raise KeyError(f"no pod {namespace}/{name} on {NODE}")

    def evict(self, namespace: str, name: str) -> None:
        """End a pod as a kubelet does whose node runs out of memory."""
        worker = self.find(namespace, name)
        container = worker.main[0].name
        message = (
            _EVICTED
            + f"Container {container} was using 7Gi, request is 0, has larger consumption of memory. "
        )
        condition = {"type": "DisruptionTarget", "status": "True", "reason": "TerminationByKubelet"}
        worker.end("Evicted", message, {**condition, "message": message}, grace_s=0)

    async def fall_silent(self) -> None:
        """As if the machine had lost its power: processes end, and nothing is reported."""
        self.lost = True
        await _end(list(self._running.values()))

    async def come_back(self) -> None:
        """The machine is up again: its pods' containers are gone, and pods that were deleted go."""
        self.lost = False
        for uid, worker in list(self._workers.items()):
            if worker.pod["metadata"].get("deletionTimestamp"):
                options: Object = {"gracePeriodSeconds": 0, "preconditions": {"uid": uid}}
                await self.api.ask("DELETE", worker.path, options)
                continue
            status: Object = {
                "phase": "Failed",
                "reason": "Terminated",
                "message": "Pod was terminated: reboot",
            }
            ended = {"exitCode": 137, "reason": "ContainerStatusUnknown", "finishedAt": now()}
            statuses = [{**c.status(), "ready": False, "state": {"terminated": ended}} for c in worker.main]
            change = {"metadata": {"uid": uid}, "status": {**status, "containerStatuses": statuses}}
            await self.api.ask("PATCH", f"{worker.path}/status", change, STRATEGIC_PATCH)

    async def logs(self, request: web.Request, target: Target, pod: Object) -> web.StreamResponse:
        """Answer ``pods/log``."""
        if self.lost:
            where = f"https://{NODE}:10250/containerLogs/{target.namespace}/{target.name}"
            raise ApiFailure(500, "InternalError", f'Get "{where}": dial tcp: connect: no route to host')
        return await logs.serve(request, pod, self._workers.get(pod["metadata"]["uid"]))

    def _see(self, kind: str, found: Object) -> None:
        if kind == "SYNC":
            for pod in found["items"]:
                self._see("ADDED", pod)
            alive = {pod["metadata"]["uid"] for pod in found["items"]}
            for uid in set(self._workers) - alive:
                self._deleted(uid)
            return
        uid = found["metadata"]["uid"]
        if kind == "DELETED":
            self._deleted(uid)
        elif uid not in self._workers and not self.lost:
            worker = self._workers[uid] = PodWorker(self, found)
            self._running[uid] = self.spawn(worker.run())
        if worker_there := self._workers.get(uid):
            worker_there.pod = found
            if found["metadata"].get("deletionTimestamp"):
                worker_there.ending.set()
        if event := self._seen.get(uid):
            event.set()

    def _deleted(self, uid: str) -> None:
        """It went without us: end it at once."""
        worker = self._workers.pop(uid, None)
        if worker is not None:
            worker.pod["metadata"] |= {"deletionTimestamp": now(), "deletionGracePeriodSeconds": 0}
            worker.ending.set()
            if event := self._seen.pop(uid, None):
                event.set()

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Do something beside; a failure of it is the kubelet's."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) and self._broken and not self._broken.done():
            self._broken.set_exception(error)


async def _end(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
