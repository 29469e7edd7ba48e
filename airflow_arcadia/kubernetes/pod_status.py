"""What a pod's status means for the worker in it. Pure: the pod and its events in, one observation out.

Reasons are those the kubelet, the scheduler and the node controller write (Kubernetes 1.29 to 1.36).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from airflow_arcadia.kubernetes.kinds import Object
from airflow_arcadia.kubernetes.times import seconds
from airflow_arcadia.readiness import ProcessObservation, Trouble, likely_cause

GONE = "It is no longer running."
_KEPT = "The pod is still there, without a running container; the teardown removes it."
_CORRECT = "Correct that, then clear the run from launch_worker."

_CANNOT_START = {
    "ImagePullBackOff": "Correct the image's name, or give image_pull_secrets that may pull it.",
    "InvalidImageName": "Correct the image's name.",
    "ErrImageNeverPull": "Put the image on the node, or choose another image_pull_policy.",
    "CreateContainerConfigError": "Create the Secret or ConfigMap it names, or correct the name.",
    "CreateContainerError": _CORRECT,
    "RunContainerError": _CORRECT,
    "StartError": "Correct the container's command.",
}
"""Reasons of a waiting container that are not transient, and what to do."""
_SCALING_UP = ("TriggeredScaleUp", "Nominated", "NominatedNode")
"""Events by which an autoscaler (Cluster Autoscaler, Karpenter) says that it makes a node for the pod."""
_OUT_OF_MEMORY = (
    "Raise the memory limit, or lower max_model_len, max_num_seqs or gpu_memory_utilization; then clear the "
    "run from launch_worker."
)


@dataclass(frozen=True)
class Container:
    """One container's status."""

    name: str
    init: bool
    status: Mapping[str, Any]

    @property
    def waiting(self) -> Mapping[str, Any]:
        """Why it does not run yet; empty when it does."""
        return (self.status.get("state") or {}).get("waiting") or {}

    @property
    def ended(self) -> Mapping[str, Any]:
        """How it ended, or ended last before it is tried again; empty when it never did."""
        state, last = self.status.get("state") or {}, self.status.get("lastState") or {}
        return state.get("terminated") or last.get("terminated") or {}


@dataclass(frozen=True)
class PodSeen:
    """One look at a pod.

    :param pod: as the API server has it; None when it says that there is none.
    :param events: about the pod, oldest first.
    :param log_tail: last lines of the container that matters.
    """

    name: str
    pod: Mapping[str, Any] | None
    events: Sequence[Object] = ()
    log_tail: Sequence[str] = ()


def observe_pod(seen: PodSeen, *, now: float, unschedulable_grace_s: float = 0.0) -> ProcessObservation:
    """What the worker in that pod does.

    :param now: seconds since the epoch.
    :param unschedulable_grace_s: seconds it may fit on no node: an autoscaler needs time to say that it acts.
    """
    name, pod, events, log_tail = seen.name, seen.pod, seen.events, seen.log_tail
    if pod is None:
        return _lost(
            "deleted",
            Trouble(
                f"Pod {name} is gone: it was deleted.",
                GONE,
                "See who deleted it, then clear the run from launch_worker.",
            ),
            log_tail,
        )
    status = pod.get("status") or {}
    trouble = (
        _being_deleted(name, pod)
        or _ended(name, status, log_tail)
        or _node_lost(name, pod, events)
        or _cannot_start(name, status, log_tail)
        or _unschedulable(name, status, events, now - unschedulable_grace_s)
    )
    if trouble is not None:
        reason, known = trouble
        return _lost(reason, known, log_tail)
    doing = _doing(status, events)
    return ProcessObservation(True, log_tail=log_tail, doing=doing, probed=is_ready(pod))


def is_ready(pod: Mapping[str, Any] | None) -> bool:
    """Whether the pod's readiness probes pass."""
    return pod is not None and _condition(pod.get("status") or {}, "Ready").get("status") == "True"


def failed_container(pod: Mapping[str, Any]) -> tuple[str, bool] | None:
    """The container whose log says why the pod fails, and whether it is its previous run's log."""
    for container in _containers(pod.get("status") or {}):
        if container.ended.get("exitCode") or container.ended.get("reason") == "OOMKilled":
            return container.name, bool(container.waiting)
    return None


def _lost(reason: str, trouble: Trouble, log_tail: Sequence[str]) -> ProcessObservation:
    return ProcessObservation(False, reason, log_tail, trouble)


def _being_deleted(name: str, pod: Mapping[str, Any]) -> tuple[str, Trouble] | None:
    if not pod["metadata"].get("deletionTimestamp"):
        return None
    disruption = _condition(pod.get("status") or {}, "DisruptionTarget")
    node = (pod.get("spec") or {}).get("nodeName")
    if disruption.get("status") == "True":
        reason = str(disruption.get("reason") or "DisruptionTarget")
        what = f"Pod {name} is taken from node {node} ({reason}): {sentence(disruption.get('message'))}"
        if reason == "DeletionByTaintManager":
            what = f"Pod {name} is evicted from node {node}, which is tainted or unreachable ({reason})."
        return reason, Trouble(what, GONE, "Clear the run from launch_worker once the cluster has capacity.")
    return "being deleted", Trouble(
        f"Pod {name} is being deleted.",
        "It ends within its grace period.",
        "See who deleted it, then clear the run from launch_worker.",
    )


def _ended(name: str, status: Mapping[str, Any], log_tail: Sequence[str]) -> tuple[str, Trouble] | None:
    if status.get("phase") not in {"Failed", "Succeeded"}:
        return None
    if reason := status.get("reason"):
        # Said of the whole pod: Evicted, DeadlineExceeded, NodeLost, UnexpectedAdmissionError, …
        what_to_do = {
            "DeadlineExceeded": "Raise active_deadline_seconds, then clear the run from launch_worker.",
            "Evicted": "Ask for the memory and disk it needs as requests, then clear from launch_worker.",
        }.get(reason, "Clear the run from launch_worker once the cluster has capacity.")
        what = f"Pod {name} was ended by the cluster ({reason}): {sentence(status.get('message'))}"
        return str(reason), Trouble(what, GONE, what_to_do)
    return _terminated(name, status, log_tail, "ended") or (
        "ended",
        Trouble(f"The worker in pod {name} ended by itself.", GONE, "See its log, then clear the run."),
    )


def _terminated(
    name: str, status: Mapping[str, Any], log_tail: Sequence[str], verb: str
) -> tuple[str, Trouble] | None:
    for container in _containers(status):
        ended = container.ended
        if not ended:
            continue
        if ended.get("reason") == "OOMKilled":
            what = f"Container {container.name} of pod {name} was killed: out of memory (OOMKilled)."
            return "OOMKilled", Trouble(what, GONE, _OUT_OF_MEMORY)
        code = ended.get("exitCode")
        if code:
            cause = likely_cause(log_tail) or ended.get("message")
            how = f"{ended.get('reason') or 'Error'}, exit code {code}"
            what = f"Container {container.name} of pod {name} {verb} ({how}){f': {cause}' if cause else ''}."
            return f"exit code {code}", Trouble(what.replace("..", "."), GONE, _named_cause())
    return None


def _named_cause() -> str:
    return "Correct the cause its log names, then clear the run from launch_worker."


def _node_lost(name: str, pod: Mapping[str, Any], events: Sequence[Object]) -> tuple[str, Trouble] | None:
    """A node that stopped reporting: its pods are marked not ready, though they last said ready."""
    status, spec = pod.get("status") or {}, pod.get("spec") or {}
    if status.get("reason") == "NodeLost" or status.get("phase") == "Unknown":
        said = str(status.get("message") or "")
    else:
        containers = status.get("containerStatuses") or ()
        contradicts = (
            _condition(status, "Ready").get("status") == "False"
            and _condition(status, "ContainersReady").get("status") != "False"
            and bool(containers)
            and all(c.get("ready") for c in containers)
            and not spec.get("readinessGates")
        )
        told = next((e for e in reversed(events) if e.get("reason") == "NodeNotReady"), None)
        marked = _condition(status, "Ready").get("reason") == "NodeNotReady" or (
            told is not None and _condition(status, "Ready").get("status") == "False"
        )
        if not contradicts and not marked:
            return None
        said = str((told or {}).get("message") or _condition(status, "Ready").get("message") or "")
    what = f"Node {spec.get('nodeName')} of pod {name} is lost (NodeNotReady): {sentence(said)}"
    return "NodeNotReady", Trouble(
        what,
        "Whether the worker still runs there cannot be known.",
        "Clear the run from launch_worker: another node takes it.",
    )


def _cannot_start(
    name: str, status: Mapping[str, Any], log_tail: Sequence[str]
) -> tuple[str, Trouble] | None:
    for container in _containers(status):
        reason = container.waiting.get("reason")
        if reason in _CANNOT_START:
            message = sentence(container.waiting.get("message"))
            what = f"Container {container.name} of pod {name} cannot start ({reason}): {message}"
            return str(reason), Trouble(what, _KEPT, _CANNOT_START[reason])
        if reason == "CrashLoopBackOff":
            found = _terminated(name, status, log_tail, "keeps crashing, CrashLoopBackOff")
            if found is None:
                what = f"Container {container.name} of pod {name} keeps crashing (CrashLoopBackOff)."
                return "CrashLoopBackOff", Trouble(what, _KEPT, _named_cause())
            how, known = found
            return f"CrashLoopBackOff, {how}", Trouble(known.what, _KEPT, known.what_to_do)
    return None


def _unschedulable(
    name: str, status: Mapping[str, Any], events: Sequence[Object], before: float
) -> tuple[str, Trouble] | None:
    scheduled = _condition(status, "PodScheduled")
    if scheduled.get("status") != "False" or scheduled.get("reason") != "Unschedulable":
        return None
    since = scheduled.get("lastTransitionTime")
    if any(event.get("reason") in _SCALING_UP for event in events) or (since and seconds(since) > before):
        return None
    what = f"Pod {name} fits on no node (Unschedulable): {sentence(scheduled.get('message'))}"
    return "Unschedulable", Trouble(
        what,
        "The pod waits without a node; the teardown removes it.",
        "Free or add what the scheduler misses, or lower the pod's resources; then clear from launch_worker.",
    )


def _doing(status: Mapping[str, Any], events: Sequence[Object]) -> str:
    """What a pod that does not run yet waits for."""
    if status.get("phase") != "Pending":
        return ""
    scheduled = _condition(status, "PodScheduled")
    if scheduled.get("reason") == "SchedulingGated":
        return "its pod to be let through its scheduling gates (a queue)"
    if scheduled.get("status") != "True":
        scaling = any(event.get("reason") in _SCALING_UP for event in events)
        return "the cluster to add a node for its pod" if scaling else "its pod to be scheduled"
    pulling = next((e for e in reversed(events) if e.get("reason") in {"Pulling", "Pulled"}), None)
    if pulling is not None and pulling.get("reason") == "Pulling":
        return f"its image ({sentence(pulling.get('message'))})"
    initialising = [
        c.name for c in _containers(status) if c.init and (c.status.get("state") or {}).get("running")
    ]
    return f"its init container {initialising[0]}" if initialising else "its pod's containers to start"


def _containers(status: Mapping[str, Any]) -> Iterator[Container]:
    for key, init in (("initContainerStatuses", True), ("containerStatuses", False)):
        for found in status.get(key) or ():
            yield Container(found.get("name", ""), init, found)


def _condition(status: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    return next((c for c in status.get("conditions") or () if c.get("type") == kind), {})


def sentence(text: object) -> str:
    """A message of the cluster's as a sentence of ours."""
    said = str(text or "no reason given").strip()
    return said if said.endswith((".", "!", "?")) else f"{said}."
