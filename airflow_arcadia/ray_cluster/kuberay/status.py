"""What the status of a RayCluster and of its pods means. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from airflow_arcadia.config import DASHBOARD_PORT, GCS_PORT, RayCluster
from airflow_arcadia.kubernetes.pod_status import PodSeen, observe_pod, sentence
from airflow_arcadia.readiness import Trouble

_REFUSED = "InvalidRayCluster"  # KubeRay's event reasons InvalidRayClusterMetadata, …Spec and …Status
_STILL_THERE = "The RayCluster is still there; the teardown removes it."


@dataclass(frozen=True)
class Coming:
    """Not ready yet; what it waits for, as part of a sentence."""

    what: str


def judge(
    name: str,
    found: Mapping[str, Any] | None,
    pods: Sequence[PodSeen],
    *,
    now: float,
    unschedulable_grace_s: float,
    events: Sequence[Mapping[str, Any]] = (),
) -> RayCluster | Coming | Trouble:
    """Where the cluster is once all its nodes are ready; else what is missing, or why it will not come up.

    :param found: the RayCluster; None when the API server says that there is none.
    :param pods: its pods.
    :param events: its own: what KubeRay refuses, it tells by an event alone.
    """
    if found is None or found["metadata"].get("deletionTimestamp"):
        return Trouble(
            f"RayCluster {name} is gone: it was deleted.",
            "Its nodes end with it.",
            "Clear the run from provision_ray_cluster.",
        )
    status = found.get("status") or {}
    waits = []
    for pod in pods:
        seen = observe_pod(pod, now=now, unschedulable_grace_s=unschedulable_grace_s)
        if seen.alive is False and seen.trouble is not None:
            cause = f"RayCluster {name} does not come up: {seen.trouble.what}"
            what_to_do = seen.trouble.what_to_do.replace("launch_worker", "provision_ray_cluster")
            return Trouble(cause, _STILL_THERE, "\n".join([what_to_do, *_log(seen.log_tail)]))
        if seen.doing:
            waits.append(f"{seen.doing} ({pod.name})")
    said = [str(e["message"]) for e in events if str(e.get("reason")).startswith(_REFUSED)]
    said += [str(c.get("message")) for c in _conditions(status, "True") if c["type"] == "ReplicaFailure"]
    refused = said[0] if said else status.get("reason")
    if refused or status.get("state") == "failed":
        return Trouble(
            f"RayCluster {name} does not come up: {sentence(refused or 'KubeRay says that it failed')}",
            _STILL_THERE,
            "See `kubectl describe raycluster`, correct ray_cluster_spec, and clear the task.",
        )
    head = status.get("head") or {}
    host = head.get("serviceIP") or head.get("podIP")
    if status.get("state") == "ready" and host and host != "None":
        return _where(name, host, status.get("endpoints") or {})
    if not status:
        return Coming("KubeRay to take it up (is its operator installed and watching this namespace?)")
    return Coming("; ".join(waits) or f"its nodes ({_lacks(status)})")


def _log(lines: Sequence[str]) -> list[str]:
    return ["Its last log lines:", *lines] if lines else []


def _where(name: str, host: str, endpoints: Mapping[str, Any]) -> RayCluster:
    gcs = endpoints.get("gcs-server") or endpoints.get("gcs") or GCS_PORT
    dashboard = endpoints.get("dashboard") or DASHBOARD_PORT
    return RayCluster(name, f"{host}:{gcs}", dashboard_host=f"{host}:{dashboard}")


def _conditions(status: Mapping[str, Any], value: str) -> list[Mapping[str, Any]]:
    return [c for c in status.get("conditions") or () if c.get("status") == value]


def _lacks(status: Mapping[str, Any]) -> str:
    said = [
        f"{c['type']}: {c.get('reason') or c.get('message') or 'no'}" for c in _conditions(status, "False")
    ]
    return ", ".join(said) or str(status.get("state") or "no state yet")
