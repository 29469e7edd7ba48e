"""Parts that every pod of ours has: who it runs as, where it may write, what it shares memory through."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow_arcadia.kubernetes.kinds import Object

API_KEY, RAY_TOKEN, HF_TOKEN, BATCH_TOKEN = "api-key", "ray-token", "hf-token", "batch-token"
STORAGE_OPTIONS = "storage-options"
SECRETS_PATH = "/etc/arcadia"
CACHE_PATH = "/tmp/arcadia"  # noqa: S108 - also there on Ray's nodes, which vLLM copies these variables to
CACHES = {
    "HOME": CACHE_PATH,
    "XDG_CACHE_HOME": CACHE_PATH,
    "HF_HOME": f"{CACHE_PATH}/huggingface",
    "VLLM_CACHE_ROOT": f"{CACHE_PATH}/vllm",
    "TRITON_CACHE_DIR": f"{CACHE_PATH}/triton",
}
"""A user without a home directory must still be able to write what vLLM and Ray keep."""


def pod_security(user: int) -> Object:
    """Security context of a pod that never runs as root."""
    return {
        "runAsNonRoot": True,
        "runAsUser": user,
        "runAsGroup": user,
        "fsGroup": user,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def locked_down() -> Object:
    """Security context of a container."""
    return {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def volumes(shm_size: str, model_volume: Mapping[str, Any] | None, secret_name: str | None) -> list[Object]:
    """Shared memory of a stated size, a place to write, the model's files, the secrets."""
    found: list[Object] = [
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": shm_size}},
        {"name": "cache", "emptyDir": {}},
    ]
    if model_volume:
        found.append({"name": "model", **model_volume})
    if secret_name:
        found.append({"name": "secrets", "secret": {"secretName": secret_name, "defaultMode": 0o440}})
    return found


def mounts(model_mount_path: str | None, *, secrets: bool) -> list[Object]:
    """Where a container sees the volumes."""
    found: list[Object] = [
        {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108 - the device, not a file in a shared folder
        {"name": "cache", "mountPath": CACHE_PATH},
    ]
    if model_mount_path:
        found.append({"name": "model", "mountPath": model_mount_path, "readOnly": True})
    if secrets:
        found.append({"name": "secrets", "mountPath": SECRETS_PATH, "readOnly": True})
    return found


def own_gpus(resources: Mapping[str, Any]) -> int:
    """GPUs that a container with these resources is given, by the names KubeRay takes for GPUs.

    MIG slices count: to Ray each is one GPU.
    """
    limits = resources.get("limits") or {}
    return sum(
        int(amount) if str(amount).isdecimal() else 0  # which no server takes
        for name, amount in limits.items()
        if name.endswith("gpu") or name.startswith("nvidia.com/mig-")
    )


def given(**fields: Any) -> Object:
    """The fields that were asked for; an empty one is left out."""
    return {key: value for key, value in fields.items() if value}
