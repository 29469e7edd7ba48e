"""The node, and what the control plane does about it when its kubelet falls silent."""

from __future__ import annotations

import asyncio

from tests.loopback_cluster.api.store import now
from tests.loopback_cluster.kubelet.client import STRATEGIC_PATCH, ApiClient, Object
from tests.loopback_cluster.kubelet.events import Recorder

NODE = "gpu-node-0"
_UNREACHABLE = "node.kubernetes.io/unreachable"
_USUAL_PATIENCE_S = 300.0


class Node:
    """The cluster's node, and its node controller.

    :param capacity: allocatable resources.
    :param labels: beside the usual ones.
    """

    def __init__(self, api: ApiClient, capacity: dict[str, str], labels: dict[str, str]) -> None:
        self._api = api
        self._events = Recorder(api, "node-controller")
        self._capacity = capacity
        usual = {"kubernetes.io/hostname": NODE, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64"}
        self._labels = usual | labels

    async def register(self) -> None:
        """Make it known, and Ready."""
        meta = {"name": NODE, "labels": self._labels}
        await self._api.ask("POST", "/api/v1/nodes", {"apiVersion": "v1", "kind": "Node", "metadata": meta})
        await self.be_ready()

    async def be_ready(self) -> None:
        """It reports, and has no taint."""
        ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "lastTransitionTime": now()}
        status = {"allocatable": self._capacity, "capacity": self._capacity, "conditions": [ready]}
        await self._api.ask("PATCH", f"/api/v1/nodes/{NODE}/status", {"status": status})
        await self._api.ask("PATCH", f"/api/v1/nodes/{NODE}", {"spec": {"taints": []}})

    async def be_silent(self) -> None:
        """What the node controller does some 50 s after the kubelet's last word."""
        unknown = {
            "type": "Ready",
            "status": "Unknown",
            "reason": "NodeStatusUnknown",
            "message": "Kubelet stopped posting node status.",
            "lastTransitionTime": now(),
        }
        await self._api.ask("PATCH", f"/api/v1/nodes/{NODE}/status", {"status": {"conditions": [unknown]}})
        taints = [{"key": _UNREACHABLE, "effect": effect} for effect in ("NoSchedule", "NoExecute")]
        await self._api.ask("PATCH", f"/api/v1/nodes/{NODE}", {"spec": {"taints": taints}})
        for pod in await self._pods():
            conditions = pod["status"].get("conditions") or ()
            was: Object = next((c for c in conditions if c["type"] == "Ready"), {})
            # A pod that was not ready is left as it is, without a word.
            if was.get("status") == "True":
                await self._tell(pod, {**was, "status": "False", "lastTransitionTime": now()})
                await self._events.tell(pod, "NodeNotReady", "Node is not ready")

    async def evict_all(self, usual_s: float) -> None:
        """What the taint manager does when the pods' patience is over: 300 s, unless they say otherwise.

        :param usual_s: how long 300 s are to take here.
        """
        tasks = [self._evict(pod, usual_s / _USUAL_PATIENCE_S) for pod in await self._pods()]
        await asyncio.gather(*tasks)

    async def _evict(self, pod: Object, scale: float) -> None:
        patience = [
            toleration.get("tolerationSeconds")
            for toleration in pod["spec"].get("tolerations") or ()
            if toleration.get("key") in {None, "", _UNREACHABLE}
            and toleration.get("effect") in {None, "", "NoExecute"}
        ]
        limited = [seconds for seconds in patience if seconds is not None]
        if patience and not limited:
            return
        await asyncio.sleep(min(limited, default=0) * scale)
        meta = pod["metadata"]
        events = Recorder(self._api, "taint-eviction-controller")
        said = f"Marking for deletion Pod {meta['namespace']}/{meta['name']}"
        await events.tell(pod, "TaintManagerEviction", said, "Normal")
        condition = {"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager"}
        message = "Taint manager: deleting due to NoExecute taint"
        await self._tell(pod, {**condition, "message": message, "lastTransitionTime": now()})
        await self._api.ask("DELETE", _path(pod), {"preconditions": {"uid": meta["uid"]}})

    async def _tell(self, pod: Object, condition: Object) -> None:
        change = {"metadata": {"uid": pod["metadata"]["uid"]}, "status": {"conditions": [condition]}}
        await self._api.ask("PATCH", f"{_path(pod)}/status", change, STRATEGIC_PATCH)

    async def _pods(self) -> list[Object]:
        listed = await self._api.ask("GET", f"/api/v1/pods?fieldSelector=spec.nodeName={NODE}")
        pods: list[Object] = (listed or {"items": []})["items"]
        return [pod for pod in pods if pod["status"]["phase"] not in {"Succeeded", "Failed"}]


def _path(pod: Object) -> str:
    return f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/{pod['metadata']['name']}"
