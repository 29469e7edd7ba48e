"""Arcadia's Worker resource for one worker. Pure: settings in, manifest out.

Its schema is ``arcadia.kubeagi.k8s.com.cn/v1alpha1``'s; what Arcadia's operator makes of it (a Deployment, a
Service, their names and labels) is not ours to say.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from airflow_arcadia.exceptions import ArcadiaConfigError
from airflow_arcadia.kubernetes.kinds import (
    LEASE_LABEL,
    MANAGED_BY,
    MANAGER,
    WORKER,
    WORKER_LABEL,
    Object,
    labels_of_lease,
    owner_reference,
)
from airflow_arcadia.kubernetes.pod_template import BATCH_TOKEN, given, own_gpus
from airflow_arcadia.launchers.arcadia_worker.settings import (
    GPUS,
    INDEX,
    SECRETS_INSTEAD,
    WorkerResourceSettings,
    parse_index,
)
from airflow_arcadia.launchers.pod.settings import refuse_secrets
from airflow_arcadia.lease import Lease
from airflow_arcadia.worker import (
    BATCH_TOKEN_VARIABLE,
    DEFAULT_PORT,
    VARIABLES,
    PlacedWorker,
    Placement,
    WorkerSpec,
    parse_num_gpus,
)

_OF_THE_PLACE = {VARIABLES[name] for name in ("host", "port", "ray_dashboard_url", "node_gpus")}
_READ_BY_ARCADIA = ("GPU_MEMORY_UTILIZATION", "EXTRA_ARGS")


def placed_worker(spec: WorkerSpec, settings: WorkerResourceSettings, namespace: str) -> PlacedWorker:
    """The spec with its place inside the Worker's pod, whose port is always Arcadia's."""
    name = settings.name or spec.name
    url = settings.worker_url.format(service=f"{name}-worker", namespace=namespace, port=DEFAULT_PORT)
    return spec.at(
        Placement(
            host="0.0.0.0",  # noqa: S104 - the pod's own network
            port=DEFAULT_PORT,
            advertised_address=url,
            node_gpus=own_gpus(settings.resources) if settings.resources and spec.uses_ray else None,
        )
    )


def secret(spec: WorkerSpec, lease: Lease, batch_token: str) -> Object:
    """The Secret that a Worker's variables name. It has the lease's name, which no other run has."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": f"{spec.name}-worker",
            "labels": labels_of_lease(lease.name),
            "ownerReferences": [owner_reference(lease.name, lease.uid)],
        },
        "type": "Opaque",
        "data": {BATCH_TOKEN: base64.b64encode(batch_token.encode()).decode()},
    }


def worker(
    placed: PlacedWorker,
    lease: Lease,
    settings: WorkerResourceSettings,
    namespace: str,
    *,
    secret: Object | None = None,
) -> Object:
    """The Worker. Raises :class:`ArcadiaConfigError` for what Arcadia could not run.

    :param placed: what :func:`placed_worker` returned.
    :param secret: what :func:`secret` returned, for a Worker of our image.
    """
    limits = settings.resources.get("limits")
    if not isinstance(limits, Mapping) or not limits:
        raise ArcadiaConfigError(
            "custom_resource has no limits in its resources, without which Arcadia's operator fails.",
            what_to_do="Set resources to {'limits': {'cpu': …, 'memory': …}} as the model needs it.",
        )
    name = settings.name or placed.name
    ours = {MANAGED_BY: MANAGER} if settings.kept else labels_of_lease(lease.name)
    meta: Object = {"name": name, "labels": {**settings.labels, **ours, WORKER_LABEL: name}}
    if not settings.kept:
        meta["ownerReferences"] = [owner_reference(lease.name, lease.uid)]
    body = {
        "type": settings.type,
        "model": model_reference(placed, settings, namespace),
        "replicas": 1,
        "resources": dict(settings.resources),
        "additionalEnvs": [*variables(placed, settings), *_from(secret)],
    }
    body |= given(
        matchExpressions=[dict(item) for item in settings.match_expressions],
        storage=settings.storage,
        loader=settings.loader,
        runner=settings.runner,
        creator=settings.creator,
        displayName=settings.display_name,
        description=settings.description,
    )
    meta |= given(annotations=dict(settings.annotations))
    return {"apiVersion": WORKER.api_version, "kind": WORKER.kind, "metadata": meta, "spec": body}


def _from(secret: Object | None) -> list[Object]:
    """The variable that takes the batch token from the Secret; Arcadia mounts no volume of ours."""
    if secret is None:
        return []
    # Optional: a Worker that is kept may be taken online by hand once the run's Secret is gone.
    key = {"name": secret["metadata"]["name"], "key": BATCH_TOKEN, "optional": True}
    return [{"name": BATCH_TOKEN_VARIABLE, "valueFrom": {"secretKeyRef": key}}]


def model_reference(spec: WorkerSpec, settings: WorkerResourceSettings, namespace: str) -> Object:
    """Reference to Arcadia's Model."""
    if settings.model:
        return {"kind": "Model", **settings.model}
    return {"apiGroup": WORKER.group, "kind": "Model", "name": spec.model, "namespace": namespace}


def model_identity(worker: Mapping[str, Any]) -> str:
    """The Worker's Model as ``namespace/name``, or empty. Each Worker serves it under a uid of its own."""
    model = (worker.get("spec") or {}).get("model") or {}
    name, namespace = model.get("name"), model.get("namespace") or worker["metadata"].get("namespace")
    return f"{namespace}/{name}" if name else ""


def variables(placed: PlacedWorker, settings: WorkerResourceSettings) -> list[Object]:
    """``additionalEnvs``: the GPUs and the Ray cluster always, then the engine's, then the user's."""
    refuse_secrets(placed.additional_envs, SECRETS_INSTEAD)
    found: dict[str, Object] = {}
    for key, value in _engine(placed, settings).items():
        found[key] = {"name": key, "value": value}
    for item in settings.additional_envs:
        found[item["name"]] = dict(item)
    for key, value in placed.additional_envs.items():
        found[key] = {"name": key, "value": value}
    # Arcadia's doc calls the index optional; its operator uses the Ray cluster only where it is present.
    always = {GPUS: str(placed.num_gpus), INDEX: str(ray_cluster_index(placed, settings))}
    rest = [item for key, item in found.items() if key not in always]
    return [*({"name": key, "value": value} for key, value in always.items()), *rest]


def ray_cluster_index(spec: WorkerSpec, settings: WorkerResourceSettings) -> int:
    """``RAY_CLUSTER_INDEX``. Raises :class:`ArcadiaConfigError` for text, which Arcadia would read as 0."""
    asked: object = spec.additional_envs.get(INDEX, settings.ray_cluster_index)
    if asked is None or not str(asked).strip():
        return spec.ray_cluster_index
    return parse_index(asked)


def _engine(placed: PlacedWorker, settings: WorkerResourceSettings) -> dict[str, str]:
    """What the engine was asked for and Arcadia does not say itself."""
    asked = replace(placed, additional_envs={}).to_env()
    usual = WorkerSpec(name=placed.name, model=placed.model).at(Placement()).to_env()
    wanted = {key: value for key, value in asked.items() if usual.get(key) != value}
    common = {key: value for key, value in wanted.items() if key in _READ_BY_ARCADIA}
    ours = {key: value for key, value in wanted.items() if key.startswith("ARCADIA_")}
    if settings.own_image:
        return ours | common
    unheard = sorted(ours.keys() - _OF_THE_PLACE)
    if unheard:
        raise ArcadiaConfigError(
            f"Arcadia's own runner image does not know {unheard[0].removeprefix('ARCADIA_').lower()}.",
            what_to_do="Set custom_resource's runner to {'image': …}, built from docker/Dockerfile.worker, "
            "or give vLLM's own option in extra_args.",
        )
    return common


def check_fits(found: Mapping[str, Any], placed: WorkerSpec, settings: WorkerResourceSettings) -> None:
    """Raise :class:`ArcadiaConfigError` for an existing Worker that is not what was asked for."""
    name, spec = found["metadata"]["name"], found.get("spec") or {}
    wanted = str((settings.model or {}).get("name") or placed.model)
    serves = (spec.get("model") or {}).get("name")
    if serves != wanted:
        raise ArcadiaConfigError(
            f"Worker {name} serves model {serves!r}, not {wanted!r}.",
            what_to_do="Give its own model, or another Worker.",
        )
    gpus = gpus_of(found)
    if placed.num_gpus not in {1, gpus}:
        raise ArcadiaConfigError(
            f"Worker {name} has {GPUS} {gpus}, not {placed.num_gpus}.",
            what_to_do="Leave num_gpus out, or change the Worker itself.",
        )


def gpus_of(found: Mapping[str, Any]) -> int:
    """``NUMBER_GPUS`` of a Worker: its own GPUs where the variable is absent, as Arcadia reads it."""
    spec = found.get("spec") or {}
    for item in spec.get("additionalEnvs") or ():
        if item.get("name") == GPUS and "value" in item:
            return parse_num_gpus(item["value"])
    own = ((spec.get("resources") or {}).get("limits") or {}).get("nvidia.com/gpu", 1)
    return parse_num_gpus(own) if str(own) != "0" else 1


def is_ours(found: Mapping[str, Any]) -> bool:
    """Whether an earlier run made it and kept it."""
    labels = found["metadata"].get("labels") or {}
    return labels.get(MANAGED_BY) == MANAGER and LEASE_LABEL not in labels
