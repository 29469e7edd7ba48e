"""The objects of one worker in a cluster: pod, service, secret. Pure: settings in, manifests out."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from airflow_arcadia.kubernetes.kinds import (
    NAME_LABEL,
    WORKER_LABEL,
    Object,
    labels_of_lease,
    owner_reference,
)
from airflow_arcadia.kubernetes.pod_template import (
    API_KEY,
    BATCH_TOKEN,
    CACHES,
    HF_TOKEN,
    RAY_TOKEN,
    SECRETS_PATH,
    STORAGE_OPTIONS,
    given,
    locked_down,
    mounts,
    own_gpus,
    pod_security,
    volumes,
)
from airflow_arcadia.launchers.pod.settings import PodSettings
from airflow_arcadia.lease import Lease
from airflow_arcadia.ray_cluster.jobs import job_environment
from airflow_arcadia.worker import NODE_GPUS, PlacedWorker, Placement

CONTAINER = "worker"
_QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
_STARTUP_PERIOD_S = 1  # the Service leads to the pod within a second of its first generation
_PROBE_PERIOD_S = 10
_AFTER_DRAIN_S = 30  # for the engine, its actors and its raylet to end after the last request
_COMMAND = ("python3", "-m", "airflow_arcadia.runtime")


def object_name(worker: str) -> str:
    """Name of the worker's pod, service and secret, as Arcadia forms it."""
    return f"{worker}-worker"


def placement(
    worker: str,
    settings: PodSettings,
    namespace: str,
    secrets: Mapping[str, str],
    *,
    gateway: bool = False,
) -> Placement:
    """Where the worker of that name listens inside its pod, and where its secrets are files.

    :param secrets: the Secret's data by key; only which keys there are matters here.
    :param gateway: whether FastChat's gateway, which sends no key, is to reach it.
    """
    url = settings.worker_url.format(service=object_name(worker), namespace=namespace, port=settings.port)
    return Placement(
        host=settings.host,
        port=settings.port,
        advertised_address=url,
        api_key_file=f"{SECRETS_PATH}/{API_KEY}" if API_KEY in secrets else None,
        fastchat_port=settings.fastchat_port if gateway and API_KEY in secrets else None,
        ray_token_file=f"{SECRETS_PATH}/{RAY_TOKEN}" if RAY_TOKEN in secrets else None,
        batch_token_file=f"{SECRETS_PATH}/{BATCH_TOKEN}" if BATCH_TOKEN in secrets else None,
        storage_options_file=f"{SECRETS_PATH}/{STORAGE_OPTIONS}" if STORAGE_OPTIONS in secrets else None,
    )


def metadata(spec: PlacedWorker, lease: Lease, settings: PodSettings) -> Object:
    """Name, labels and owner that all objects of the worker share."""
    name = object_name(spec.name)
    labels = dict(settings.labels) | labels_of_lease(lease.name)
    return {
        "name": name,
        "labels": labels | {NAME_LABEL: name, WORKER_LABEL: spec.name},
        "ownerReferences": [owner_reference(lease.name, lease.uid)],
    }


def secret(spec: PlacedWorker, lease: Lease, settings: PodSettings, secrets: Mapping[str, str]) -> Object:
    """The Secret with what the worker may know and nobody else may read."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata(spec, lease, settings),
        "type": "Opaque",
        "data": {key: base64.b64encode(value.encode()).decode() for key, value in secrets.items()},
    }


def service(spec: PlacedWorker, lease: Lease, settings: PodSettings) -> Object:
    """The Service at which the worker is found, by Arcadia's name and port."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(spec, lease, settings),
        "spec": {
            "selector": {WORKER_LABEL: spec.name, **labels_of_lease(lease.name)},
            "ports": [
                {"name": name, "port": port, "targetPort": name, "protocol": "TCP"}
                for name, port in _ports(spec).items()
            ],
        },
    }


def pod(spec: PlacedWorker, lease: Lease, settings: PodSettings, secrets: Mapping[str, str]) -> Object:
    """The pod. ``spec`` has the placement of :func:`placement`."""
    meta = metadata(spec, lease, settings)
    meta["annotations"] = dict(settings.annotations)
    if settings.queue_name:
        meta["labels"][_QUEUE_LABEL] = settings.queue_name
    body: Object = {
        "restartPolicy": "Never",  # a worker that fails is named and launched again, not crashed in a loop
        "automountServiceAccountToken": settings.automount_service_account_token,
        "enableServiceLinks": False,  # variables of other services, copied to every Ray worker, help nobody
        "terminationGracePeriodSeconds": math.ceil(spec.drain_seconds) + _AFTER_DRAIN_S,
        "securityContext": pod_security(settings.run_as_user),
        "containers": [_container(spec, lease, settings, secrets)],
        "volumes": volumes(
            settings.shm_size, settings.model_volume, object_name(spec.name) if secrets else None
        ),
    }
    if settings.loader and settings.model_volume:
        loader = {"name": "loader", "securityContext": locked_down(), **settings.loader}
        loader["volumeMounts"] = [
            *loader.get("volumeMounts", ()),
            {"name": "model", "mountPath": settings.model_mount_path},
        ]
        body["initContainers"] = [loader]
    body |= _placement(settings)
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": body}


def with_own_gpus(pod: Object, spec: PlacedWorker) -> Object:
    """The pod with its worker told of the GPUs of its container, which an overlay may have given it."""
    worker = next((c for c in pod["spec"]["containers"] if c["name"] == CONTAINER), None)
    if worker is not None and not any(item["name"] == NODE_GPUS for item in worker.get("env") or ()):
        told = replace(spec, node_gpus=own_gpus(worker.get("resources") or {})).to_env()[NODE_GPUS]
        worker["env"] = [*(worker.get("env") or ()), {"name": NODE_GPUS, "value": told}]
    return pod


def _container(spec: PlacedWorker, lease: Lease, settings: PodSettings, secrets: Mapping[str, str]) -> Object:
    health = {"path": "/health", "port": "http"}
    attempts = max(1, math.ceil(settings.startup_timeout / _STARTUP_PERIOD_S))
    found: Object = {
        "name": CONTAINER,
        "image": settings.image,
        "command": list(_COMMAND),
        "env": _environment(spec, lease, secrets),
        "ports": [
            {"name": name, "containerPort": port, "protocol": "TCP"} for name, port in _ports(spec).items()
        ],
        "resources": dict(settings.resources),
        "securityContext": locked_down(),
        "startupProbe": _probe(health, _STARTUP_PERIOD_S, timeout_s=5, failures=attempts),
        "readinessProbe": _probe(health, _PROBE_PERIOD_S, timeout_s=5, failures=3),
        # A server that is busy answers late; only one that answers nothing for a minute is dead. An engine
        # that hangs is the runtime's to end, which says why; /version does not ask the engine.
        "livenessProbe": _probe({**health, "path": "/version"}, _PROBE_PERIOD_S, timeout_s=10, failures=6),
        "volumeMounts": mounts(
            settings.model_mount_path if settings.model_volume else None, secrets=bool(secrets)
        ),
    }
    if settings.image_pull_policy:
        found["imagePullPolicy"] = settings.image_pull_policy
    return found


def _probe(get: Object, period_s: int, *, timeout_s: int, failures: int) -> Object:
    return {
        "httpGet": get,
        "periodSeconds": period_s,
        "timeoutSeconds": timeout_s,
        "failureThreshold": failures,
    }


def _ports(spec: PlacedWorker) -> dict[str, int]:
    """Names and numbers of the ports that the worker listens on."""
    ports = {"http": spec.port}
    if spec.fastchat_port is not None:
        ports["fastchat"] = spec.fastchat_port
    return ports


def _environment(spec: PlacedWorker, lease: Lease, secrets: Mapping[str, str]) -> list[Object]:
    plain = CACHES | job_environment(lease.name)
    if HF_TOKEN in secrets:
        plain["HF_TOKEN_PATH"] = f"{SECRETS_PATH}/{HF_TOKEN}"
    plain |= spec.to_env()  # Arcadia's additionalEnvs come last and win
    found: list[Object] = [{"name": name, "value": value} for name, value in plain.items()]
    if "VLLM_HOST_IP" not in plain:
        address = {"fieldRef": {"fieldPath": "status.podIP"}}
        found.append({"name": "VLLM_HOST_IP", "valueFrom": address})
    return found


def _placement(settings: PodSettings) -> Object:
    """Where and as whom the pod may run; only what was asked for."""
    return given(
        nodeSelector=dict(settings.node_selector),
        tolerations=[dict(item) for item in settings.tolerations],
        affinity=_affinity(settings),
        imagePullSecrets=[{"name": name} for name in settings.image_pull_secrets],
        serviceAccountName=settings.service_account_name,
        priorityClassName=settings.priority_class_name,
        activeDeadlineSeconds=settings.active_deadline_seconds,
    )


def _affinity(settings: PodSettings) -> Any:
    """The affinity as given, with Arcadia's ``matchExpressions`` required of the node besides."""
    affinity = dict(settings.affinity)
    if not settings.match_expressions:
        return affinity
    wanted = [dict(item) for item in settings.match_expressions]
    node = dict(affinity.get("nodeAffinity") or {})
    required = dict(node.get("requiredDuringSchedulingIgnoredDuringExecution") or {})
    terms = required.get("nodeSelectorTerms") or [{}]
    # Terms are alternatives: each of them must also hold what the worker asks for.
    required["nodeSelectorTerms"] = [
        {**term, "matchExpressions": [*term.get("matchExpressions", ()), *wanted]} for term in terms
    ]
    node["requiredDuringSchedulingIgnoredDuringExecution"] = required
    return affinity | {"nodeAffinity": node}
