"""A stand-in for Arcadia's operator: Workers become a pod, a Service and a status, as its source has it.

A bare pod stands in for the Deployment's, so it is made again when it has failed or was deleted. Not acted
on: Models (whose repository id would replace the path below ``/data/models``), Embedders, LLMs, and the
operator's loader image: an init container is made only where ``spec.loader.image`` names one. As pods of
the loopback share their ports, the variable ARCADIA_PORT also moves the container's port.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.loopback_cluster.controllers.base import Controller, Object, definition, owner, with_times

GROUP = "arcadia.kubeagi.k8s.com.cn"
CONFIG = "arcadia-config"
PORT = 21002
_DEFAULT_IMAGE = "kubeagi/arcadia-fastchat-worker:vllm-v0.2.36"
_FREE: Object = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
_TEXT: Object = {"type": "string"}
_AMOUNTS: Object = {"type": "object", "additionalProperties": {"x-kubernetes-int-or-string": True}}
_IMAGE: Object = {"type": "object", "properties": {"image": _TEXT, "imagePullPolicy": _TEXT}}
_REFERENCE: Object = {
    "type": "object",
    "required": ["kind", "name"],
    "properties": {"apiGroup": _TEXT, "kind": _TEXT, "name": _TEXT, "namespace": _TEXT},
}
_EXPRESSION: Object = {
    "type": "object",
    "required": ["key", "operator"],
    "properties": {"key": _TEXT, "operator": _TEXT, "values": {"type": "array", "items": _TEXT}},
}
_VARIABLE: Object = {
    "type": "object",
    "required": ["name"],
    "properties": {"name": _TEXT, "value": _TEXT, "valueFrom": _FREE},
}
_SPEC: Object = {
    "type": "object",
    "required": ["model"],
    "properties": {
        "creator": _TEXT,
        "displayName": _TEXT,
        "description": _TEXT,
        "type": _TEXT,
        "model": _REFERENCE,
        "replicas": {"type": "integer", "format": "int32", "default": 1, "maximum": 1},
        "resources": {"type": "object", "properties": {"limits": _AMOUNTS, "requests": _AMOUNTS}},
        "matchExpressions": {"type": "array", "items": _EXPRESSION},
        "additionalEnvs": {"type": "array", "items": _VARIABLE},
        "storage": _FREE,
        "loader": _IMAGE,
        "runner": _IMAGE,
    },
}


class RefusedError(Exception):
    """Something that makes the operator give the Worker an error."""


class Arcadia(Controller):
    """Acts on Workers.

    :param programs: name of a runner's image that no registry has → the image and the command in its place.
    """

    definition = definition(GROUP, "v1alpha1", "Worker", "workers", _SPEC)

    def __init__(
        self,
        kubeconfig: Path,
        namespace: str,
        context: str | None = None,
        programs: Mapping[str, tuple[str, list[str]]] | None = None,
    ) -> None:
        super().__init__(kubeconfig, namespace, context)
        self._programs = programs if programs is not None else {}

    async def reconcile(self, found: Object) -> Object:
        """See :meth:`Controller.reconcile`."""
        name = found["metadata"]["name"]
        pods = await self.pods(f"app.kubernetes.io/name={name}-worker")
        for pod in pods:
            # A Deployment of no replicas deletes its pods; what has failed is replaced by it.
            if not found["spec"]["replicas"] or pod["status"].get("phase") in {"Failed", "Succeeded"}:
                await self.delete(pod)
        alive = [pod for pod in pods if not pod["metadata"].get("deletionTimestamp")]
        try:
            config = await self._config()
            if found["spec"].get("storage"):
                await self.make("persistentvolumeclaims", _claim(found))
            await self.make("services", _service(found))
            if found["spec"]["replicas"] and not alive:
                pod = worker_pod(found, config)
                container = pod["spec"]["containers"][0]
                if container["image"] in self._programs:
                    container["image"], container["command"] = self._programs[container["image"]]
                alive = [await self.make("pods", pod)]
        except RefusedError as error:
            return self.refused(found, str(error))
        return _status(found, alive)

    async def _config(self) -> Object:
        path = f"/api/v1/namespaces/{self.namespace}/configmaps/{CONFIG}"
        there = await self.get(path)
        text = ((there or {}).get("data") or {}).get("config")
        if text is None:
            raise RefusedError(f'failed to get arcadia config with configmaps "{CONFIG}" not found')
        config = yaml.safe_load(text) or {}
        if not (config.get("gateway") or {}).get("controller"):
            raise RefusedError("failed to get arcadia config with gateway is not found")
        return dict(config)

    def refused(self, found: Object, why: str) -> Object:
        """See :meth:`Controller.refused`."""
        return {**(found.get("status") or {}), "conditions": _condition(found, "False", "Error", why)}


def worker_pod(found: Object, config: Object) -> Object:
    """The pod of the Worker's Deployment."""
    spec, meta = found["spec"], found["metadata"]
    full = f"{meta['name']}-worker"
    labels = {"app.kubernetes.io/name": full, f"{GROUP}/worker": meta["name"]}
    mounts = [{"name": "models", "mountPath": "/data/models"}]
    runner = spec.get("runner") or {}
    given = {variable["name"]: variable.get("value") for variable in spec.get("additionalEnvs") or ()}
    container: Object = {
        "name": "runner",
        "image": runner.get("image") or _DEFAULT_IMAGE,
        "env": [*_environment(found, config), *(spec.get("additionalEnvs") or ())],
        "ports": [{"name": "http", "containerPort": _number(given.get("ARCADIA_PORT")) or PORT}],
        "volumeMounts": [*mounts, {"name": "models", "mountPath": "/dev/shm"}],
        "resources": copy.deepcopy(spec.get("resources") or {}),
    }
    if runner.get("imagePullPolicy"):
        container["imagePullPolicy"] = runner["imagePullPolicy"]
    storage: Object = (
        {"persistentVolumeClaim": {"claimName": full}} if spec.get("storage") else {"emptyDir": {}}
    )
    body: Object = {"restartPolicy": "Always", "containers": [container]}
    body["volumes"] = [{"name": "models", **storage}]
    if (spec.get("loader") or {}).get("image"):
        body["initContainers"] = [{"name": "loader", **spec["loader"], "volumeMounts": mounts}]
    if spec.get("matchExpressions"):
        terms = [{"matchExpressions": spec["matchExpressions"]}]
        required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
        body["affinity"] = {"nodeAffinity": required}
    reference = {"generateName": f"{full}-", "labels": labels, "ownerReferences": [owner(found)]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": reference, "spec": body}


def _environment(found: Object, config: Object) -> list[Object]:
    """What the runner sets, before the Worker's own variables. Raises :class:`RefusedError`."""
    spec, meta = found["spec"], found["metadata"]
    vllm = spec.get("type") == "fastchat-vllm"
    limits = (spec.get("resources") or {}).get("limits")
    if limits is None:
        raise RefusedError("panic: runtime error: assignment to entry in nil map (resources.limits)")
    module = "vllm_worker" if vllm else "model_worker"
    env = {
        "FASTCHAT_WORKER_NAME": f"fastchat.serve.{module}",
        "FASTCHAT_WORKER_NAMESPACE": meta["namespace"],
        "FASTCHAT_REGISTRATION_MODEL_NAME": meta["uid"],
        "FASTCHAT_MODEL_NAME": spec["model"]["name"],
        "FASTCHAT_WORKER_ADDRESS": f"http://{meta['name']}-worker.{meta['namespace']}:{PORT}",
        "FASTCHAT_CONTROLLER_ADDRESS": config["gateway"]["controller"],
        "FASTCHAT_MODEL_NAME_PATH": f"/data/models/{spec['model']['name']}",
        "NUMBER_GPUS": str(limits.get("nvidia.com/gpu", "0")),
        "SYSTEM_ARGS": "",
        "EXTRA_ARGS": "--trust-remote-code" if vllm else "--device cuda",
    }
    if vllm:
        env |= _ray(spec, config)
    return [{"name": key, "value": value} for key, value in env.items()]


def _ray(spec: Object, config: Object) -> dict[str, str]:
    """The Ray cluster of RAY_CLUSTER_INDEX, which is used only where that variable is present."""
    given = {variable["name"]: variable.get("value") for variable in spec.get("additionalEnvs") or ()}
    gpus = _number(given.get("NUMBER_GPUS") or spec["resources"]["limits"].get("nvidia.com/gpu", "0"))
    if gpus <= 1 or "RAY_CLUSTER_INDEX" not in given:
        return {"RAY_ADDRESS": "", "RAY_VERSION": "", "PYTHON_VERSION": ""}
    clusters = config.get("rayClusters") or []
    index = _number(given["RAY_CLUSTER_INDEX"])
    if not 0 <= index < len(clusters):
        raise RefusedError(f"panic: runtime error: index out of range [{index}] with length {len(clusters)}")
    cluster = clusters[index]
    return {
        "RAY_ADDRESS": str(cluster.get("headAddress", "")),
        "RAY_VERSION": str(cluster.get("rayVersion") or "2.9.3"),
        "PYTHON_VERSION": str(cluster.get("pythonVersion") or "3.9.5"),
    }


def _number(text: Any) -> int:
    """As Go's Atoi whose error nobody reads: 0."""
    try:
        return int(text)
    except (TypeError, ValueError):
        return 0


def _service(found: Object) -> Object:
    full = f"{found['metadata']['name']}-worker"
    port = {"name": "http", "port": PORT, "targetPort": "http", "protocol": "TCP"}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": full, "ownerReferences": [owner(found)]},
        "spec": {"type": "ClusterIP", "selector": {"app.kubernetes.io/name": full}, "ports": [port]},
    }


def _claim(found: Object) -> Object:
    full = f"{found['metadata']['name']}-worker"
    meta = {"name": full, "ownerReferences": [owner(found)]}
    spec = copy.deepcopy(found["spec"]["storage"])
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": meta, "spec": spec}


def _status(found: Object, pods: list[Object]) -> Object:
    """Running says that the container runs, not that the model is loaded."""
    if not found["spec"]["replicas"]:
        return {"conditions": _condition(found, "False", "Offline", "Work is offline")}
    status = pods[0].get("status") or {}
    running = any(c["state"].get("running") for c in status.get("containerStatuses") or ())
    if running:
        conditions = _condition(found, "True", "Running", "Work has been actively running")
    else:
        conditions = _condition(found, "False", "Pending", "Worker is pending")
    return {"podStatus": status, "conditions": conditions}


def _condition(found: Object, status: str, reason: str, message: str) -> list[Object]:
    new = {"type": "Ready", "status": status, "reason": reason, "message": message}
    return with_times([new], (found.get("status") or {}).get("conditions") or [])
