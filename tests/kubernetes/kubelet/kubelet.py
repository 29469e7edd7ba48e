"""The kubelet of one node, with the scheduler that binds pods to it."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from aiohttp import web

from tests.kubernetes.api.kinds import Target
from tests.kubernetes.api.status import ApiFailure
from tests.kubernetes.api.store import now
from tests.kubernetes.kubelet.client import ApiClient, Object
from tests.kubernetes.kubelet.container import amount
from tests.kubernetes.kubelet.pod import PodWorker

NODE = "gpu-node-0"
_LOG_POLL_S = 0.05


class Kubelet:
    """Runs the pods of node ``gpu-node-0``.

    :param url: the API server.
    :param root: folder for pods' files.
    :param images: image name → environment of what runs in it; other images cannot be pulled.
    :param capacity: allocatable resources beside CPU and memory, e.g. ``{"nvidia.com/gpu": "2"}``.
    """

    def __init__(
        self, url: str, root: Path, images: dict[str, dict[str, str]], capacity: dict[str, str]
    ) -> None:
        self.api = ApiClient(url)
        self.root = root
        self.images = images
        self.lost = False
        self._capacity = {"cpu": "64", "memory": "512Gi", "pods": "110"} | capacity
        self._workers: dict[str, PodWorker] = {}
        self._events: dict[str, asyncio.Event] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    async def run(self) -> None:
        """Follow the pods until cancelled; then no process of any of them is left."""
        node: Object = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}}
        await self.api.ask("POST", "/api/v1/nodes", node)
        ready = {"type": "Ready", "status": "True", "reason": "KubeletReady"}
        status = {"allocatable": self._capacity, "capacity": self._capacity, "conditions": [ready]}
        await self.api.ask("PATCH", f"/api/v1/nodes/{NODE}/status", {"status": status})
        try:
            async for kind, found in self.api.follow("/api/v1/pods"):
                await self._see(kind, found)
        finally:
            for worker in self._workers.values():
                worker.kill()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self.api.close()

    async def changed(self, uid: str) -> None:
        """Wait until that pod is seen again."""
        event = self._events.setdefault(uid, asyncio.Event())
        event.clear()
        await event.wait()

    def worker(self, uid: str) -> PodWorker:
        """The pod of that uid."""
        return self._workers[uid]

    async def event(self, pod: Object, reason: str, message: str, kind: str = "Warning") -> None:
        """Record an event about the pod."""
        meta = pod["metadata"]
        about = {"apiVersion": "v1", "kind": "Pod", "name": meta["name"], "namespace": meta["namespace"]}
        event: Object = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"generateName": f"{meta['name']}."},
            "type": kind,
            "reason": reason,
            "message": message,
            "lastTimestamp": now(),
            "involvedObject": {**about, "uid": meta["uid"]},
            "source": {"component": "kubelet", "host": NODE},
        }
        await self.api.ask("POST", f"/api/v1/namespaces/{meta['namespace']}/events", event)

    async def lose_node(self) -> None:
        """As if the machine were gone: its processes are dead, and the node controller says so."""
        self.lost = True
        unknown = {"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown"}
        await self.api.ask("PATCH", f"/api/v1/nodes/{NODE}/status", {"status": {"conditions": [unknown]}})
        for worker in self._workers.values():
            worker.kill()
            not_ready = {"type": "Ready", "status": "False", "reason": "NodeNotReady"}
            body: Object = {"status": {"conditions": [not_ready]}}
            await self.api.ask("PATCH", f"{worker.path}/status", body)
            await self.event(worker.pod, "NodeNotReady", "Node is not ready")

    async def logs(self, request: web.Request, target: Target, pod: Object) -> web.StreamResponse:
        """Answer ``pods/log``."""
        query = request.query
        worker = self._workers.get(pod["metadata"]["uid"])
        container = worker.container(query.get("container")) if worker else None
        if container is None or not (container.log.exists() or container.previous_log.exists()):
            raise ApiFailure(400, "BadRequest", f'container in pod "{target.name}" is waiting to start')
        previous = query.get("previous") in ("true", "True")
        path = container.previous_log if previous or not container.log.exists() else container.log
        since = ""
        if seconds := query.get("sinceSeconds"):
            start = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(seconds=int(seconds))
            since = start.strftime("%Y-%m-%dT%H:%M:%S")
        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        await response.prepare(request)
        stamped = query.get("timestamps") in ("true", "True")
        with path.open(encoding="utf-8") as file:
            lines = [line for line in file.readlines() if line >= since]
            if tail := query.get("tailLines"):
                lines = lines[-int(tail) :] if int(tail) else []
            while True:
                for line in lines:
                    text = line if stamped else line.partition(" ")[2]
                    await response.write(text.encode())
                if query.get("follow") not in ("true", "True"):
                    return response
                if not (lines := file.readlines()) and container.exit_code is not None:
                    return response
                await asyncio.sleep(_LOG_POLL_S)

    async def _see(self, kind: str, found: Object) -> None:
        if kind == "SYNC":
            for pod in found["items"]:
                await self._see("ADDED", pod)
            alive = {pod["metadata"]["uid"] for pod in found["items"]}
            for uid in set(self._workers) - alive:
                self._deleted(uid)
            return
        uid = found["metadata"]["uid"]
        if kind == "DELETED":
            self._deleted(uid)
        elif not found["spec"].get("nodeName"):
            await self._schedule(found)
        elif found["spec"]["nodeName"] == NODE:
            worker = self._workers.get(uid)
            if worker is None and not self.lost:
                worker = self._workers[uid] = PodWorker(self, found)
                self._start(worker.run())
            if worker:
                worker.pod = found
                if found["metadata"].get("deletionTimestamp") and not self.lost:
                    worker.ending.set()
        if event := self._events.get(uid):
            event.set()

    def _deleted(self, uid: str) -> None:
        worker = self._workers.pop(uid, None)
        if worker is not None:
            worker.pod["metadata"] |= {"deletionTimestamp": now(), "deletionGracePeriodSeconds": 0}
            worker.ending.set()
            if event := self._events.get(uid):
                event.set()

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _schedule(self, pod: Object) -> None:
        meta, spec = pod["metadata"], pod["spec"]
        path = f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}"
        if meta.get("deletionTimestamp") or spec.get("schedulingGates"):
            return
        why = await self._unfit(pod)
        if why is None:
            if not self.lost:
                await self.api.ask(
                    "PATCH", path, {"metadata": {"uid": meta["uid"]}, "spec": {"nodeName": NODE}}
                )
            return
        message = f"0/1 nodes are available: {why}."
        said = (pod.get("status") or {}).get("conditions") or [{}]
        if said[0].get("message") == message:
            return
        condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
        await self.event(pod, "FailedScheduling", message)
        with contextlib.suppress(AssertionError):
            await self.api.ask("PATCH", f"{path}/status", {"status": {"conditions": [condition]}})

    async def _unfit(self, pod: Object) -> str | None:
        spec = pod["spec"]
        for key, value in (spec.get("nodeSelector") or {}).items():
            if (key, value) != ("kubernetes.io/hostname", NODE):
                return "1 node(s) didn't match Pod's node affinity/selector"
        for volume in spec.get("volumes") or ():
            claim = (volume.get("persistentVolumeClaim") or {}).get("claimName")
            namespace = pod["metadata"]["namespace"]
            claims = f"/api/v1/namespaces/{namespace}/persistentvolumeclaims"
            if claim and await self.api.ask("GET", f"{claims}/{claim}") is None:
                return f'persistentvolumeclaim "{claim}" not found'
        wanted: dict[str, float] = {}
        others = [w.pod["spec"] for w in self._workers.values() if w.phase in {"Pending", "Running"}]
        for container in [c for one in [spec, *others] for c in one["containers"]]:
            for name, quantity in (container.get("resources", {}).get("requests") or {}).items():
                wanted[name] = wanted.get(name, 0) + amount(quantity)
        short = [name for name, total in wanted.items() if total > amount(self._capacity.get(name, "0"))]
        return f"1 Insufficient {short[0]}" if short else None
