"""What may happen to a run whose worker is in a cluster: the cases of processes, and a cluster's own.

Names begin with the launcher: ``pod``, ``resource`` (Arcadia's Worker) or ``ray`` (a pod on a Ray cluster
that is made for the run).
"""

from __future__ import annotations

import fnmatch
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from airflow_arcadia.kubernetes.kinds import LEASE, POD, WORKER, Kind
from tests.lifecycle import cases as processes
from tests.lifecycle.cases import AIRFLOW_GONE, ENDED, Case, Outage, at, held, ready_waits
from tests.lifecycle.cluster_stage import NAMESPACE, ClusterStage
from tests.lifecycle.stage import Run, Stage, wait

LAUNCHERS = ("pod", "resource", "ray")
OF_THIS_MACHINE = ("lease.*", "warm.lease_*", "real.*", "dag.*")
"""Cases that change a lease's file, have the real engine, or change a DAG's file."""
RESTARTED_IN_PLACE = ("kill.ready", "worker.supervisor_loading", "warm.kill_server_loading", "clear.failed_*")
"""Arcadia's pods start a container again that ends: the model is loaded once more."""
NOT_OF_THE_LAUNCHER = ("api_server.*", "scheduler.restarted_*", "scheduler.gone_*")
"""Pods have shown what these do to Airflow's side, which is the same for Arcadia's Workers."""
RAY = (
    "success.task",
    "kill.provision",
    "run_failed.provision",
    "run_failed.batch",
    "task_failed.provision",
    "raise.batch",
    "timeout.dagrun",
    "user.short_lease",
    "lease.deleted",
    "airflow.gone_batch",
    "airflow.gone_batch_with_task",
    "warm.success",
)
"""Cases that concern the Ray cluster."""
TRUTH_OF_A_RESOURCE = dict.fromkeys(
    (
        "worker.server",
        "worker.supervisor",
        "worker.supervisor_deferred",
        "kill.batch_worker",
        "warm.kill_supervisor",
        "pod.deleted",
    ),
    "success",
)
"""A batch goes on once Arcadia's Deployment has its container or its pod again."""


LAUNCH_AGAIN = "airflow.gone_launch"
"""Fails, as `provision` does: the lease watcher removes a lapsed Lease, which Airflow's next try misses."""


def cluster_of(stage: Stage) -> ClusterStage:
    """The stage, as one in a cluster."""
    assert isinstance(stage, ClusterStage)
    return stage


def delete(kind: Kind) -> Callable[[Run], None]:
    """Delete the run's objects of that kind by hand."""

    def do(run: Run) -> None:
        stage = cluster_of(run.stage)
        for name in stage.names(run, kind.plural):
            if kind is POD:
                stage.cluster.core.delete_namespaced_pod(name, NAMESPACE)
            elif kind is LEASE:
                stage.cluster.coordination.delete_namespaced_lease(name, NAMESPACE)
            else:
                of_kind = (kind.group, kind.version, NAMESPACE, kind.plural)
                stage.cluster.custom.delete_namespaced_custom_object(*of_kind, name)

    return do


def tear_lease(run: Run) -> None:
    """Leave the Lease without an identity that can be read."""
    stage = cluster_of(run.stage)
    broken = {"metadata": {"annotations": {"airflow-arcadia/identity": "{"}}}
    stage.cluster.coordination.patch_namespaced_lease(stage.lease(run), NAMESPACE, broken)


# -- what happens to the cluster, and so to several runs at once --------------------------------------------

AWAY_S, NODE_AWAY_S = 15.0, 20.0


def api_away(stage: Stage) -> None:
    """The API server restarts while runs launch, wait, answer and are torn down."""
    cluster = cluster_of(stage)
    with cluster.loopback.api_away():
        cluster.release()
        time.sleep(AWAY_S)


def node_lost(stage: Stage) -> None:
    """The node is NotReady, and returns."""
    loopback = cluster_of(stage).loopback
    loopback.lose_node()
    time.sleep(NODE_AWAY_S)
    loopback.return_node()


def node_returns(stage: Stage) -> None:
    """The node is back when the runs have ended, and their teardowns have named what they could not end."""
    cluster = cluster_of(stage)
    for run in cluster.runs:
        wait(lambda run=run: run.state in ENDED, 300, "the run's end")  # type: ignore[misc]
    cluster.loopback.return_node()


def nothing(stage: Stage) -> None:
    """It is over already."""


API_AWAY = Outage("api.away", api_away, nothing)
NODE_LOST = Outage("node.lost", node_lost, nothing)
NODE_LOST_FOR_LONG = Outage(
    "node.lost_for_long", lambda stage: cluster_of(stage).loopback.lose_node(), node_returns
)
BATCH: dict[str, Any] = {"dag": "held_batch", "when": held("answering")}
BATCH_IN_WORKER: dict[str, Any] = {"dag": "held_batch_worker", "when": held("answering")}
LOADING: dict[str, Any] = {"dag": "held_loading", "when": ready_waits}


def stopped(step: str, dag: str = "quick") -> dict[str, Any]:
    """DAG, condition and conf of a run that is held at that step."""
    return {"dag": dag, "when": held(step), "conf": {"hold": step}}


def _own(launcher: str) -> list[Case]:
    """What can only happen in a cluster."""
    away, lost, long = {"outage": API_AWAY}, {"outage": NODE_LOST}, {"outage": NODE_LOST_FOR_LONG}
    found = [
        Case("pod.deleted", truth="failed", event=delete(POD), **at("batch")),
        Case("lease.deleted", truth="failed", event=delete(LEASE), **at("batch")),
        Case("lease.deleted_loading", truth="failed", event=delete(LEASE), **at("ready")),
        Case("lease.torn", truth="success", event=tear_lease, rows=200, **at("batch")),
        Case("api.away_launch", truth="success", rows=10, **away, **stopped("launching")),
        Case("api.away_ready", truth="success", rows=10, **away, **LOADING),
        Case("api.away_batch", truth="success", rows=200, **away, **BATCH),
        Case("api.away_teardown", truth="success", rows=10, **away, **stopped("teardown")),
        Case("node.lost_ready", truth="failed", **lost, **LOADING),
        Case("node.lost_batch", truth="failed", **lost, **BATCH),
        Case("node.lost_for_long_batch", truth="failed", **long, **BATCH),
    ]
    found += [
        Case("api.away_batch_worker", truth="success", rows=200, **away, **BATCH_IN_WORKER),
        Case("node.lost_batch_worker", truth="failed", **lost, **BATCH_IN_WORKER),
    ]
    if launcher == "resource":
        found.append(Case("resource.deleted", truth="failed", event=delete(WORKER), **at("batch")))
    if launcher == "pod":
        found.append(Case("pod.deleted_loading", truth="failed", event=delete(POD), **at("ready")))
    return found


def _of_ray() -> list[Case]:
    """With everything killed while the Ray cluster is there and its worker is not yet."""
    hold = stopped("provision", "lapsing_quick")
    return [
        Case("airflow.gone_provision", truth="failed", rows=0, outage=AIRFLOW_GONE, freed_first=True, **hold)
    ]


def _of(launcher: str, case: Case) -> Case | None:
    """The case with that launcher; None where it means nothing there."""
    excluded: Sequence[str] = ()
    if launcher == "resource":
        excluded = [*RESTARTED_IN_PLACE, *NOT_OF_THE_LAUNCHER]
    if _matches(case.name, excluded) or (launcher == "ray" and case.name not in RAY):
        return None
    truth, rows = case.truth, case.rows
    if launcher == "resource" and (other := TRUTH_OF_A_RESOURCE.get(case.name)):
        truth, rows = other, 200
    if case.name == LAUNCH_AGAIN:
        truth, rows = "failed", 0
    name, dag = f"{launcher}.{case.name}", f"{launcher}_{case.dag}"
    return replace(case, name=name, dag=dag, truth=truth, rows=rows, representative=False, in_cluster=True)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def _cases() -> list[Case]:
    shared = [case for case in processes.CASES if not _matches(case.name, OF_THIS_MACHINE)]
    found = [
        case for launcher in LAUNCHERS for each in [*shared, *_own(launcher)] if (case := _of(launcher, each))
    ]
    found += [
        replace(case, name=f"ray.{case.name}", dag=f"ray_{case.dag}", in_cluster=True) for case in _of_ray()
    ]
    return [replace(case, representative=case.name in REPRESENTATIVE) for case in found]


REPRESENTATIVE = (
    "pod.success.worker",
    "pod.worker.supervisor",
    "resource.timeout.dagrun",
    "ray.run_failed.batch",
)
CASES = _cases()
