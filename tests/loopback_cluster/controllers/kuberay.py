"""A stand-in for KubeRay: RayClusters become a head pod, a head Service, worker pods and a status.

As KubeRay 1.2 and later do it, with these simplifications:

- A machine is one Ray node: the head is started with the GPUs of all worker groups, and worker pods run no
  Ray: they sleep, and are ready when they run. That they can be pulled and scheduled is real.
- Only what ``rayStartParams`` and the resources say is passed to ``ray start``: KubeRay's own port for
  metrics would be one for all heads of this machine. The shell is no login shell, which would reset PATH.
- The head has a readiness probe on the dashboard's ``/api/gcs_healthz`` and no liveness probe.
- The image's ``/dev/shm`` is mounted as by KubeRay; init containers that wait for the GCS are not made.
- No autoscaling, no suspension, no Redis. Groups are scaled up, never down.
"""

from __future__ import annotations

import copy
from typing import Any

from tests.loopback_cluster.controllers.base import Controller, Object, definition, is_ready, with_times
from tests.loopback_cluster.controllers.kuberay_pods import (
    gpus,
    head_pod,
    head_service,
    hosts,
    ports_of,
    refusal,
    service_name,
    worker_pod,
)

_FREE: Object = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
_PARAMS: Object = {"type": "object", "additionalProperties": {"type": "string"}}
_COUNT: Object = {"type": "integer", "format": "int32"}
_HEAD: Object = {
    "type": "object",
    "required": ["template"],
    "properties": {
        "rayStartParams": _PARAMS,
        "template": _FREE,
        "serviceType": {"type": "string"},
        "headService": _FREE,
        "enableIngress": {"type": "boolean"},
        "resources": _PARAMS,
        "labels": _PARAMS,
    },
}
_GROUP: Object = {
    "type": "object",
    "required": ["groupName", "maxReplicas", "minReplicas", "template"],
    "properties": {
        "groupName": {"type": "string"},
        "replicas": {**_COUNT, "default": 0},
        "minReplicas": {**_COUNT, "default": 0},
        "maxReplicas": {**_COUNT, "default": 2147483647},
        "numOfHosts": {**_COUNT, "default": 1},
        "idleTimeoutSeconds": _COUNT,
        "suspend": {"type": "boolean"},
        "rayStartParams": _PARAMS,
        "template": _FREE,
        "scaleStrategy": _FREE,
        "resources": _PARAMS,
        "labels": _PARAMS,
    },
}
_SPEC: Object = {
    "type": "object",
    "required": ["headGroupSpec"],
    "properties": {
        "rayVersion": {"type": "string"},
        "headGroupSpec": _HEAD,
        "workerGroupSpecs": {"type": "array", "items": _GROUP},
        "enableInTreeAutoscaling": {"type": "boolean"},
        "autoscalerOptions": _FREE,
        "authOptions": {"type": "object", "properties": {"mode": {"type": "string"}}},
        "gcsFaultToleranceOptions": _FREE,
        "headServiceAnnotations": _PARAMS,
        "managedBy": {"type": "string"},
        "suspend": {"type": "boolean"},
    },
}


class KubeRay(Controller):
    """Acts on RayClusters."""

    definition = definition("ray.io", "v1", "RayCluster", "rayclusters", _SPEC)

    async def reconcile(self, found: Object) -> Object:
        """See :meth:`Controller.reconcile`."""
        name = found["metadata"]["name"]
        if refused := refusal(found):
            await self.make("events", refused)
            return found.get("status") or {}
        await self.make("services", head_service(found))
        pods = await self.pods(f"ray.io/cluster={name}")
        alive = [pod for pod in pods if not pod["metadata"].get("deletionTimestamp")]
        heads = [pod for pod in alive if _label(pod, "node-type") == "head"]
        if not heads:
            heads = [await self.make("pods", head_pod(found))]
        for pod in alive:
            # Of restartPolicy Never, or evicted: KubeRay makes another one.
            if (pod.get("status") or {}).get("phase") in {"Failed", "Succeeded"}:
                await self.delete(pod)
        workers = [pod for pod in alive if _label(pod, "node-type") == "worker"]
        for group in found["spec"].get("workerGroupSpecs") or ():
            there = [pod for pod in workers if _label(pod, "group") == group["groupName"]]
            for _ in range(hosts(group) - len(there)):
                workers.append(await self.make("pods", worker_pod(found, group)))
        return _status(found, heads[0], workers)

    def refused(self, found: Object, why: str) -> Object:
        """See :meth:`Controller.refused`."""
        status = copy.deepcopy(found.get("status") or {})
        others = [c for c in status.get("conditions") or () if c["type"] != "ReplicaFailure"]
        failure = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreateWorkerPod"}
        if not status.get("head"):
            failure["reason"] = "FailedCreateHeadPod"
        conditions = with_times([failure | {"message": why}], status.get("conditions") or [])
        return status | {"conditions": [*others, *conditions]}


def loopback_params(port: int, dashboard_port: int, client_port: int) -> dict[str, str]:
    """``rayStartParams`` of a head that shares its machine, and keeps to its loopback address."""
    return {
        "node-ip-address": "127.0.0.1",
        "port": str(port),
        "dashboard-host": "127.0.0.1",
        "dashboard-port": str(dashboard_port),
        "ray-client-server-port": str(client_port),
        "dashboard-agent-listen-port": "0",
        "min-worker-port": "0",
        "max-worker-port": "0",
    }


def _label(pod: Object, name: str) -> str | None:
    found: str | None = (pod["metadata"].get("labels") or {}).get(f"ray.io/{name}")
    return found


def _status(found: Object, head: Object, workers: list[Object]) -> Object:
    old = found.get("status") or {}
    groups = found["spec"].get("workerGroupSpecs") or []
    ready = [pod for pod in workers if is_ready(pod)]
    desired = sum(hosts(group) for group in groups)
    provisioned = is_ready(head) and len(ready) == desired
    first = provisioned or old.get("state") == "ready"
    address = (head.get("status") or {}).get("podIP", "")
    told: dict[str, Any] = {"podName": head["metadata"]["name"], "serviceName": service_name(found)}
    if address:
        told |= {"podIP": address, "serviceIP": address}
    status: Object = {
        "head": told,
        "endpoints": {name: str(number) for name, number in ports_of(found).items()},
        "desiredWorkerReplicas": desired,
        "minWorkerReplicas": sum(group["minReplicas"] for group in groups),
        "maxWorkerReplicas": sum(group["maxReplicas"] for group in groups),
        "availableWorkerReplicas": sum(1 for pod in workers if pod["status"]["phase"] == "Running"),
        "readyWorkerReplicas": len(ready),
        "desiredGPU": f"{sum(gpus(group) * hosts(group) for group in groups):g}",
        "observedGeneration": found["metadata"]["generation"],
    }
    if first:
        status["state"] = "ready"
    whole = {"type": "RayClusterProvisioned", "status": "True" if first else "False"}
    if first:
        whole |= {"reason": "AllPodRunningAndReadyFirstTime"}
        whole |= {"message": "All Ray Pods are ready for the first time"}
    else:
        whole |= {"reason": "RayClusterPodsProvisioning"}
        whole |= {"message": "RayCluster Pods are being provisioned for first time"}
    status["conditions"] = with_times([_head_condition(head), whole], old.get("conditions") or [])
    return status


def _head_condition(head: Object) -> Object:
    """HeadPodReady: the pod's own Ready condition, with the reason of a container that waits.

    A pod without a node has no such condition, and KubeRay then knows no reason: the pod has it.
    """
    pod = head.get("status") or {}
    ready: Object = next((c for c in pod.get("conditions") or () if c["type"] == "Ready"), {})
    condition = {"type": "HeadPodReady", "status": ready.get("status", "False"), "reason": "Unknown"}
    condition["message"] = ready.get("message", "")
    if ready:
        condition["reason"] = ready.get("reason") or "HeadPodRunningAndReady"
    for container in pod.get("containerStatuses") or ():
        waiting = container["state"].get("waiting") or container["state"].get("terminated")
        if waiting and condition["status"] == "False":
            condition |= {
                "reason": waiting["reason"],
                "message": f"{container['name']}: {waiting.get('message')}",
            }
            break
    return condition
