"""Interpret an Arcadia Worker's conditions. Pure: the Worker and its pod in, one observation out.

Arcadia writes one condition, ``Ready``: True with reason ``Running`` (the container runs, which says nothing
of the model), False with ``Pending``, ``Offline`` or ``Error``. Why a Worker is pending only its pod knows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from airflow_arcadia.kubernetes.kinds import NAME_LABEL, WORKER_LABEL, Object, selector
from airflow_arcadia.kubernetes.pod_status import GONE, PodSeen, observe_pod, sentence
from airflow_arcadia.readiness import ProcessObservation, Trouble

CONTAINER = "runner"
OFFLINE_SINCE = "offline_since"
"""Key of a handle's ``where``: since when the Worker had been offline before it was taken online."""
_STILL_THERE = "The Worker is still there; the teardown ends it."
_AGAIN = "then clear the run from launch_worker."


@dataclass(frozen=True)
class WorkerSeen:
    """A Worker as it was read once.

    :param worker: as the API server has it; None when it says that there is none.
    :param pod: its newest pod; None while it has none.
    """

    worker: Mapping[str, Any] | None
    pod: PodSeen | None = None


def pods_of(worker: str) -> str:
    """Label selector of the pods that Arcadia makes for that Worker."""
    return selector({NAME_LABEL: f"{worker}-worker", WORKER_LABEL: worker})


def newest(pods: Sequence[Object]) -> Object | None:
    """The pod that counts: a Deployment may still be ending an earlier one."""
    living = [pod for pod in pods if not pod["metadata"].get("deletionTimestamp")]
    return max(living, key=lambda pod: str(pod["metadata"].get("creationTimestamp") or ""), default=None)


def is_online(worker: Mapping[str, Any]) -> bool:
    """Whether it is meant to run; Arcadia's default is one replica."""
    return bool((worker.get("spec") or {}).get("replicas", 1))


def ready_condition(worker: Mapping[str, Any]) -> Mapping[str, Any]:
    """Arcadia's one condition; empty before its operator has set it."""
    conditions = (worker.get("status") or {}).get("conditions") or ()
    return next((c for c in conditions if c.get("type") == "Ready"), {})


def offline_since(worker: Mapping[str, Any]) -> str | None:
    """Since when its condition says that it is offline; None when it does not."""
    condition = ready_condition(worker)
    return str(condition.get("lastTransitionTime") or "") if condition.get("reason") == "Offline" else None


def observe_worker(seen: WorkerSeen, where: Mapping[str, Any], *, now: float) -> ProcessObservation:
    """What the worker does.

    :param where: its handle's.
    :param now: seconds since the epoch.
    """
    name, worker = str(where["worker"]), seen.worker
    if worker is None or where.get("uid") not in {None, worker["metadata"]["uid"]}:
        return _lost(
            "deleted",
            Trouble(f"Worker {name} is gone: it was deleted.", GONE, f"See who deleted it, {_AGAIN}"),
        )
    if worker["metadata"].get("deletionTimestamp"):
        known = Trouble(f"Worker {name} is being deleted.", "It ends.", f"See who deleted it, {_AGAIN}")
        return _lost("being deleted", known)
    # Until Arcadia has seen that it was taken online, its condition is that of before.
    since = offline_since(worker)
    if not is_online(worker) or (since is not None and since != where.get(OFFLINE_SINCE)):
        what = f"Worker {name} was taken offline."
        return _lost("Offline", Trouble(what, GONE, f"See who set its replicas to 0, {_AGAIN}"))
    grace_s = float(where.get("unschedulable_grace") or 0.0)
    pod = observe_pod(seen.pod, now=now, unschedulable_grace_s=grace_s) if seen.pod else None
    log_tail = pod.log_tail if pod else ()
    if pod and pod.alive is False and pod.trouble:
        what = f"Worker {name} does not run: {pod.trouble.what}"
        known = Trouble(what, _STILL_THERE, pod.trouble.what_to_do)
        return ProcessObservation(False, pod.exit_reason, log_tail, known)
    condition = ready_condition(worker)
    if condition.get("reason") == "Error":
        what = f"Arcadia cannot run Worker {name}: {sentence(condition.get('message'))}"
        return _lost("Error", Trouble(what, _STILL_THERE, f"Correct what it names, {_AGAIN}"), log_tail)
    return ProcessObservation(True, log_tail=log_tail, doing=_doing(condition, pod))


def _doing(condition: Mapping[str, Any], pod: ProcessObservation | None) -> str:
    """What a Worker that does not run yet waits for."""
    if condition.get("status") == "True":
        return ""
    if pod is not None:
        return pod.doing
    if not condition:
        return "Arcadia's operator to take it up (is it installed, and does it watch this namespace?)"
    return "Arcadia's operator to make its pod"


def _lost(reason: str, known: Trouble, log_tail: Sequence[str] = ()) -> ProcessObservation:
    return ProcessObservation(False, reason, log_tail, known)
