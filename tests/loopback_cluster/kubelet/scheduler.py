"""The scheduler of a cluster with one node."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.loopback_cluster.api.store import now
from tests.loopback_cluster.api.values import amount
from tests.loopback_cluster.kubelet.client import STRATEGIC_PATCH, ApiClient, Object
from tests.loopback_cluster.kubelet.events import Recorder

_RETRY_S = 0.5
_ENDED = {"Succeeded", "Failed"}
_OPERATORS: dict[str, Any] = {
    "In": lambda value, wanted: value in wanted,
    "NotIn": lambda value, wanted: value not in wanted,
    "Exists": lambda value, wanted: value is not None,
    "DoesNotExist": lambda value, wanted: value is None,
    "Gt": lambda value, wanted: value is not None and int(value) > int(wanted[0]),
    "Lt": lambda value, wanted: value is not None and int(value) < int(wanted[0]),
}


class Scheduler:
    """Binds pods to the node while they fit, and says why where they do not."""

    def __init__(self, api: ApiClient, node: str) -> None:
        self._api = api
        self._node = node
        self._events = Recorder(api, "default-scheduler")
        self._pods: dict[str, Object] = {}
        self._bound: set[str] = set()
        self._seen = asyncio.Event()

    async def run(self) -> None:
        """Until cancelled."""
        await asyncio.gather(self._follow(), self._bind_pods())

    async def _follow(self) -> None:
        async for event, found in self._api.follow("/api/v1/pods"):
            if event == "SYNC":
                self._pods = {pod["metadata"]["uid"]: pod for pod in found["items"]}
            elif event == "DELETED":
                self._pods.pop(found["metadata"]["uid"], None)
            else:
                self._pods[found["metadata"]["uid"]] = found
            self._seen.set()

    async def _bind_pods(self) -> None:
        while True:
            self._seen.clear()
            for pod in [pod for pod in self._pods.values() if self._waits(pod)]:
                await self._schedule(pod)
            # Claims, nodes and gates change without a word about the pod.
            waiting = any(self._waits(pod) for pod in self._pods.values())
            try:
                await asyncio.wait_for(self._seen.wait(), _RETRY_S if waiting else None)
            except asyncio.TimeoutError:
                continue

    def _waits(self, pod: Object) -> bool:
        spec = pod["spec"]
        meant = spec.get("schedulerName") == "default-scheduler" and not spec.get("schedulingGates")
        gone = pod["metadata"].get("deletionTimestamp")
        return meant and not gone and not spec.get("nodeName") and pod["metadata"]["uid"] not in self._bound

    async def _schedule(self, pod: Object) -> None:
        meta = pod["metadata"]
        path = f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}"
        why = await self._unfit(pod)
        if why is None:
            # Taken before the watch tells so, or a second pod would be given the same GPUs.
            self._bound.add(meta["uid"])
            binding: Object = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": meta["name"]}}
            binding["target"] = {"apiVersion": "v1", "kind": "Node", "name": self._node}
            if await self._api.ask("POST", f"{path}/binding", binding) is not None:
                said = f"Successfully assigned {meta['namespace']}/{meta['name']} to {self._node}"
                await self._events.tell(pod, "Scheduled", said, "Normal")
            return
        message = f"0/1 nodes are available: {why}. preemption: 0/1 nodes are available: "
        message += "1 Preemption is not helpful for scheduling."
        known = (pod.get("status") or {}).get("conditions") or ()
        if any(condition.get("message") == message for condition in known):
            return
        since = next((c.get("lastTransitionTime") for c in known if c["type"] == "PodScheduled"), None)
        condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
        condition |= {"message": message, "lastTransitionTime": since or now()}
        change: Object = {"metadata": {"uid": meta["uid"]}, "status": {"conditions": [condition]}}
        await self._api.ask("PATCH", f"{path}/status", change, STRATEGIC_PATCH)
        await self._events.tell(pod, "FailedScheduling", message)

    async def _unfit(self, pod: Object) -> str | None:
        node = await self._api.ask("GET", f"/api/v1/nodes/{self._node}")
        if node is None:
            return "no nodes available to schedule pods"
        return (
            _untolerated(pod, node)
            or _unwanted(pod, node)
            or await self._unbound_claim(pod)
            or self._short(pod, node)
        )

    async def _unbound_claim(self, pod: Object) -> str | None:
        for volume in pod["spec"].get("volumes") or ():
            name = (volume.get("persistentVolumeClaim") or {}).get("claimName")
            if name is None:
                continue
            namespace = pod["metadata"]["namespace"]
            path = f"/api/v1/namespaces/{namespace}/persistentvolumeclaims/{name}"
            claim = await self._api.ask("GET", path)
            if claim is None:
                return f'persistentvolumeclaim "{name}" not found'
            if (claim.get("status") or {}).get("phase") != "Bound":
                return "pod has unbound immediate PersistentVolumeClaims"
        return None

    def _short(self, pod: Object, node: Object) -> str | None:
        """What the node has too little of, beside what its other pods asked for."""
        others = [
            other
            for uid, other in self._pods.items()
            if (uid in self._bound or other["spec"].get("nodeName")) and uid != pod["metadata"]["uid"]
        ]
        holding = [o for o in others if (o.get("status") or {}).get("phase") not in _ENDED]
        allocatable = node["status"]["allocatable"]
        short = []
        for name, wanted in requests(pod).items():
            used = sum(requests(other).get(name, 0) for other in holding)
            if wanted and used + wanted > amount(allocatable.get(name, "0")):
                short.append("Too many pods" if name == "pods" else f"Insufficient {name}")
        return ", ".join(f"1 {what}" for what in short) or None


def requests(pod: Object) -> dict[str, float]:
    """What a pod asks of its node: the sum of its containers, or more where one init container asks more."""
    total: dict[str, float] = {"pods": 1}
    for container in pod["spec"]["containers"]:
        for name, quantity in (container.get("resources", {}).get("requests") or {}).items():
            total[name] = total.get(name, 0) + amount(quantity)
    for container in pod["spec"].get("initContainers") or ():
        for name, quantity in (container.get("resources", {}).get("requests") or {}).items():
            total[name] = max(total.get(name, 0), amount(quantity))
    return total


def tolerates(pod: Object, taint: Object) -> bool:
    """Whether the pod may be on a node with this taint."""
    for toleration in pod["spec"].get("tolerations") or ():
        same_key = toleration.get("key") in {None, "", taint["key"]}
        same_effect = toleration.get("effect") in {None, "", taint["effect"]}
        exists = toleration.get("operator") == "Exists"
        if same_key and same_effect and (exists or toleration.get("value", "") == taint.get("value", "")):
            return True
    return False


def _untolerated(pod: Object, node: Object) -> str | None:
    for taint in node["spec"].get("taints") or ():
        if taint["effect"] != "PreferNoSchedule" and not tolerates(pod, taint):
            return f"1 node(s) had untolerated taint {{{taint['key']}: {taint.get('value', '')}}}"
    return None


def _unwanted(pod: Object, node: Object) -> str | None:
    labels = node["metadata"].get("labels") or {}
    selector = pod["spec"].get("nodeSelector") or {}
    fits = all(labels.get(key) == value for key, value in selector.items())
    affinity = (pod["spec"].get("affinity") or {}).get("nodeAffinity") or {}
    terms = (affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}).get("nodeSelectorTerms")
    if terms is not None:
        fits = fits and any(_term_fits(term, labels) for term in terms)
    return None if fits else "1 node(s) didn't match Pod's node affinity/selector"


def _term_fits(term: Object, labels: dict[str, str]) -> bool:
    return all(
        _OPERATORS[wanted["operator"]](labels.get(wanted["key"]), wanted.get("values") or [])
        for wanted in term.get("matchExpressions") or ()
    )
