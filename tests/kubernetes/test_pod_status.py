"""What a pod's status means, read off the status alone."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_arcadia.kubernetes.pod_status import PodSeen, failed_container, observe_pod
from airflow_arcadia.readiness import ProcessObservation

NOW = 1_700_000_000.0
THEN = "2023-11-14T22:13:00Z"  # 20 s before


def look(
    status: dict[str, Any],
    *,
    events: tuple[dict[str, Any], ...] = (),
    log: tuple[str, ...] = (),
    grace_s: float = 0.0,
    **metadata: Any,
) -> ProcessObservation:
    pod = {"metadata": {"name": "p", **metadata}, "spec": {"nodeName": "n"}, "status": status}
    return observe_pod(PodSeen("p", pod, events, log), now=NOW, unschedulable_grace_s=grace_s)


def waiting(reason: str, message: str = "because", **more: Any) -> dict[str, Any]:
    state = {"waiting": {"reason": reason, "message": message}}
    return {"phase": "Pending", "containerStatuses": [{"name": "worker", "state": state, **more}]}


def ended(code: int, reason: str = "Error") -> dict[str, Any]:
    state = {"terminated": {"exitCode": code, "reason": reason}}
    return {"phase": "Failed", "containerStatuses": [{"name": "worker", "state": state}]}


def conditions(**holds: str) -> list[dict[str, str]]:
    return [{"type": kind, "status": status} for kind, status in holds.items()]


def said(seen: ProcessObservation) -> str:
    assert seen.alive is False
    assert seen.trouble is not None
    return seen.trouble.what


@pytest.mark.parametrize(
    "reason",
    ["ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "CreateContainerConfigError", "StartError"],
)
def test_a_container_that_will_never_start_is_named_with_the_kubelets_words(reason: str):
    assert said(look(waiting(reason))) == f"Container worker of pod p cannot start ({reason}): because."


@pytest.mark.parametrize("reason", ["ErrImagePull", "ContainerCreating", "PodInitializing"])
def test_what_may_pass_is_waited_for(reason: str):
    assert look(waiting(reason)).alive is True


def test_a_failing_init_container_is_named():
    state = {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}
    status = {"phase": "Pending", "initContainerStatuses": [{"name": "loader", "state": state}]}
    assert "Container loader of pod p cannot start" in said(look(status))


def test_a_crash_loop_has_the_cause_of_its_last_crash_and_the_log_of_that_run():
    last = {"terminated": {"exitCode": 1, "reason": "Error"}}
    status = waiting("CrashLoopBackOff", lastState=last)
    words = said(look(status, log=("Traceback", "ValueError: no heads")))
    assert "keeps crashing, CrashLoopBackOff (Error, exit code 1): ValueError: no heads." in words
    assert failed_container({"status": status}) == ("worker", True)


def test_out_of_memory_is_told_from_other_ends():
    assert "out of memory (OOMKilled)" in said(look(ended(137, "OOMKilled")))
    assert "(Error, exit code 137)" in said(look(ended(137)))
    assert failed_container({"status": ended(1)}) == ("worker", False)
    assert "ended by itself" in said(look(ended(0, "Completed") | {"phase": "Succeeded"}))


@pytest.mark.parametrize(
    "reason", ["Evicted", "DeadlineExceeded", "UnexpectedAdmissionError", "NodeShutdown"]
)
def test_what_the_cluster_ended_is_told_in_its_words(reason: str):
    status = {"phase": "Failed", "reason": reason, "message": "The node was low on memory"}
    assert said(look(status)) == f"Pod p was ended by the cluster ({reason}): The node was low on memory."


def test_a_pod_that_fits_nowhere_is_told_in_the_schedulers_words():
    condition = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": "0/3 nodes are available: 3 Insufficient nvidia.com/gpu",
        "lastTransitionTime": THEN,
    }
    status = {"phase": "Pending", "conditions": [condition]}
    assert "fits on no node (Unschedulable): 0/3 nodes are available" in said(look(status))
    assert look(status, grace_s=60).alive is True
    assert "add a node" in look(status, events=({"reason": "TriggeredScaleUp"},)).doing


def test_a_queue_is_waited_for():
    status = {
        "phase": "Pending",
        "conditions": [{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}],
    }
    assert "scheduling gates" in look(status).doing


def test_an_image_being_pulled_is_what_it_waits_for():
    status = waiting("ContainerCreating") | {"conditions": conditions(PodScheduled="True")}
    assert (
        "its image (Pulling image"
        in look(status, events=({"reason": "Pulling", "message": 'Pulling image "x"'},)).doing
    )
    pulled = ({"reason": "Pulling", "message": "…"}, {"reason": "Pulled", "message": "…"})
    assert look(status, events=pulled).doing == "its pod's containers to start"


def test_an_init_container_that_runs_is_what_it_waits_for():
    status = {
        "phase": "Pending",
        "conditions": conditions(PodScheduled="True"),
        "initContainerStatuses": [{"name": "loader", "state": {"running": {"startedAt": THEN}}}],
    }
    assert look(status).doing == "its init container loader"


def test_a_node_that_stopped_reporting_is_lost_though_its_pod_says_running():
    running = [{"name": "worker", "ready": True, "state": {"running": {"startedAt": THEN}}}]
    status = {
        "phase": "Running",
        "containerStatuses": running,
        "conditions": conditions(Ready="False", ContainersReady="True"),
    }
    seen = look(status, events=({"reason": "NodeNotReady", "message": "Node is not ready"},))
    assert said(seen) == "Node n of pod p is lost (NodeNotReady): Node is not ready."
    assert seen.trouble is not None
    assert "cannot be known" in seen.trouble.still_running


def test_a_pod_that_is_only_not_ready_yet_is_alive():
    loading = [{"name": "worker", "ready": False, "state": {"running": {"startedAt": THEN}}}]
    status = {
        "phase": "Running",
        "containerStatuses": loading,
        "conditions": conditions(Ready="False", ContainersReady="False"),
    }
    assert look(status) == ProcessObservation(True)


def test_a_pod_taken_from_its_node_is_told_from_one_that_somebody_deletes():
    taken = {
        "phase": "Running",
        "conditions": [
            {
                "type": "DisruptionTarget",
                "status": "True",
                "reason": "DeletionByTaintManager",
                "message": "Taint manager: deleting due to NoExecute taint",
            }
        ],
    }
    assert "Pod p is evicted from node n, which is tainted or unreachable (DeletionByTaintManager)" in said(
        look(taken, deletionTimestamp=THEN)
    )
    assert said(look({"phase": "Running"}, deletionTimestamp=THEN)) == "Pod p is being deleted."


def test_a_pod_that_is_not_there_was_deleted():
    assert "it was deleted" in said(observe_pod(PodSeen("p", None), now=NOW))
