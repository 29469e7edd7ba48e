"""Warm workers in a cluster: a pod, Arcadia's Worker and a Ray cluster outlive the runs that share them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from airflow_arcadia.hooks.arcadia import ArcadiaHook
from airflow_arcadia.hooks.kubernetes import kubernetes_api
from airflow_arcadia.kubernetes.leases import KubernetesLeases, lease_object, parse_lease
from airflow_arcadia.launchers.batch_renewal import BatchRenewal
from airflow_arcadia.launchers.reaper import Held
from airflow_arcadia.lease import Identity, Lease, Owned, Use, Warm
from airflow_arcadia.operators.ray_cluster import ArcadiaProvisionRayClusterOperator
from airflow_arcadia.operators.worker import ArcadiaReserveWorkerOperator
from airflow_arcadia.warm import Request, use_of
from tests.airflow_context import make_context
from tests.conftest import ROOT, wait_for
from tests.deploy.manifests import role
from tests.kubernetes import arcadia
from tests.kubernetes.rays import made_here, ray_clusters, start_kuberay
from tests.kubernetes.workers import STAND_IN, Run, connect, stand_in, where
from tests.loopback_cluster.cluster import Cluster, Loopback

Make = Callable[[str], "WarmRun"]


@dataclass
class WarmRun(Run):
    """One run whose group keeps its worker warm.

    :param made_from: the parameters of its worker.
    """

    made_from: dict[str, Any] = field(default_factory=dict)

    def reserve(self) -> str:
        """Reserve the run's lease and claim the worker."""
        operator = ArcadiaReserveWorkerOperator(
            task_id="reserve", group="answer", keep_warm="10m", worker={"model": "m/tiny", **self.made_from}
        )
        self.lease = operator.execute(make_context(self.run_id))
        return self.lease

    def launch(self, *, try_number: int = 1, **kwargs: Any) -> dict[str, Any]:
        """Launch what was claimed, or adopt it."""
        return super().launch(try_number=try_number, **{**self.made_from, **kwargs})

    def all(self) -> dict[str, Any]:
        """Everything until its model is ready."""
        self.reserve()
        self.launch()
        assert self.wait() is None
        return self.handle


@pytest.fixture
def leases(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubernetesLeases]:
    connect(monkeypatch, cluster)
    found = KubernetesLeases(kubernetes_api(cluster.airflow_connection["extra"], cluster.namespace))
    yield found
    hook = ArcadiaHook()
    for name in found.names():
        hook.end(name, grace_s=0)


@pytest.fixture(params=["pod", "custom_resource"])
def make(request: pytest.FixtureRequest, cluster: Cluster, leases: KubernetesLeases) -> Make:
    """Makes runs whose worker is the same."""
    if request.param == "pod":
        made_from: dict[str, Any] = {"pod": {"image": cluster.python_image, **stand_in(cluster)}}
    else:
        arcadia.start_arcadia(cluster)
        made_from = {"launcher": "custom_resource", "custom_resource": arcadia.made_here()}
    return lambda run_id: WarmRun(cluster, run_id, made_from=made_from)


def pod_uids(cluster: Cluster) -> list[str]:
    return [pod.metadata.uid for pod in cluster.core.list_namespaced_pod(cluster.namespace).items]


def test_the_next_run_adopts_the_worker_and_nothing_of_the_first_is_left(
    make: Make, leases: KubernetesLeases, cluster: Cluster
):
    first, second = make("manual__1"), make("manual__2")
    began = first.all()
    before = pod_uids(cluster)
    first.teardown(grace=1)
    assert first.objects == []
    adopted = second.all()
    assert (adopted["url"], adopted["where"]) == (began["url"], began["where"])
    assert pod_uids(cluster) == before
    assert adopted["run_lease"] == second.lease
    second.teardown(grace=1)
    (left,) = leases.warm()
    assert left.warm is not None
    assert left.warm.uses == ()
    assert leases.names() == [left.name]


def test_the_shipped_roles_are_enough(make: Make, leases: KubernetesLeases, loopback: Loopback):
    loopback.obey([role(name, "tests") for name in ("airflow-arcadia", "airflow-arcadia-workers")])
    runs = [make(f"manual__{number}") for number in range(2)]
    for run in runs:
        run.all()
        run.teardown(grace=1)
    assert runs[0].handle["where"] == runs[1].handle["where"]


def test_runs_at_the_same_time_share_one_worker(make: Make, leases: KubernetesLeases, cluster: Cluster):
    runs = [make(f"manual__{number}") for number in range(2)]
    threads = [threading.Thread(target=run.all) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert runs[0].handle["where"] == runs[1].handle["where"]
    assert len(pod_uids(cluster)) == 1
    runs[0].teardown(grace=1)
    assert len(pod_uids(cluster)) == 1
    runs[1].teardown(grace=1)
    assert len(pod_uids(cluster)) == 1


def test_a_dead_worker_is_replaced(make: Make, leases: KubernetesLeases, cluster: Cluster):
    first, second = make("manual__1"), make("manual__2")
    began = first.all()
    first.teardown(grace=1)
    name = began["lease"]
    if began["launcher"] == "pod":
        cluster.core.delete_namespaced_pod(began["where"]["pod"], cluster.namespace, grace_period_seconds=0)
    else:
        arcadia.delete(cluster, began["where"]["worker"])
    wait_for(lambda: pod_uids(cluster) == [], 60, "the worker to be gone")
    assert second.all()["lease"] != name
    assert leases.read(name) is None
    second.teardown(grace=1)


def test_the_lease_watcher_ends_it_when_its_warm_period_is_over_and_airflow_is_away(
    make: Make, leases: KubernetesLeases, cluster: Cluster, loopback: Loopback
):
    run = make("manual__1")
    name = run.all()["lease"]
    run.teardown(grace=1)
    env = {**os.environ, "KUBECONFIG": str(cluster.kubeconfig), "PYTHONPATH": str(ROOT)}
    argv = [sys.executable, "-m", "airflow_arcadia.launchers.lease_watcher"]
    argv += ["--namespace", cluster.namespace, "--interval", "0.3", "--grace", "0"]
    watcher = subprocess.Popen(argv, env=env)
    try:
        leases.update(name, lambda held: replace(held, duration_s=2.0, renewed_at=time.time()))
        wait_for(lambda: leases.names() == [] and pod_uids(cluster) == [], 90, "everything to be gone")
    finally:
        watcher.terminate()
        watcher.wait()


def test_leases_of_warm_workers_are_made_once_and_found(leases: KubernetesLeases):
    now = time.time()
    run = leases.reserve(Identity("dag", "run", "w"), now)
    lease = Request("0123456789abcdef", "tiny").new(0, use_of(run, 600, now), now)
    assert leases.create(lease)
    assert not leases.create(lease)
    (found,) = leases.warm()
    assert (found.name, found.warm) == (lease.name, lease.warm)


def test_the_object_and_the_lease_are_the_same_thing():
    warm = Warm("0123456789abcdef", 2, 9.5, 8.5, (Use("r", 1.5, 60.0, 600.0),), "r", {"w": {"name": "w"}})
    lease = Lease("l", Identity("", "k", "g", 3), 1.5, 2.5, 60.0, (Owned("worker", "w", "pod"),), warm=warm)
    assert parse_lease(lease_object(lease)) == lease


def test_a_batch_that_gets_further_renews_the_worker_and_the_runs_that_use_it(
    leases: KubernetesLeases, cluster: Cluster, loopback: Loopback
):
    """Airflow is away; the lease watcher looks."""
    answer = "ANSWERS.get(self.path, {})"
    program = STAND_IN.replace(answer, f"{{**{answer}, 'seconds_since_batch_progress': 0.0}}")
    container = {"name": "worker", "command": ["python3", "-c", program]}
    pod = {"image": cluster.python_image, **where(), "full_pod_spec": {"spec": {"containers": [container]}}}
    run = WarmRun(cluster, "manual__1", made_from={"pod": pod})
    name = run.all()["lease"]
    api = kubernetes_api(cluster.airflow_connection["extra"], cluster.namespace)

    def both_are_renewed() -> bool:
        """After one look, as the lease watcher takes it; the pod may answer late on a busy machine."""
        later = time.time() + 1300  # past a third of the lease
        held = [Held(lease, leases.read(lease), 0.0) for lease in (run.lease, name)]
        BatchRenewal(api, clock=lambda: later).renew(held, later)
        found = [leases.read(lease) for lease in (run.lease, name)]
        return all(lease is not None and lease.last_renewed_at > time.time() + 1200 for lease in found)

    wait_for(both_are_renewed, 30, "both leases to be renewed")
    run.teardown(grace=0)


@pytest.mark.engine
def test_a_ray_cluster_that_was_made_for_the_worker_stays_with_it(leases: KubernetesLeases, cluster: Cluster):
    start_kuberay(cluster)
    with made_here(cluster) as spec:
        parameters = {"num_gpus": 2, "create": "if_missing", "ray_cluster_spec": spec}
        made_from = {**parameters, "pod": {"image": cluster.python_image, **stand_in(cluster)}}
        runs = [WarmRun(cluster, f"manual__{number}", made_from=made_from) for number in range(2)]
        rays = []
        for run in runs:
            run.reserve()
            operator = ArcadiaProvisionRayClusterOperator(task_id="p", lease=run.lease, **parameters)
            ray = operator.execute(make_context(run.run_id))
            launched = {key: made_from[key] for key in ("num_gpus", "pod")}
            Run.launch(run, ray=ray, **launched)
            assert run.wait() is None
            rays.append(ray)
            run.teardown(grace=1)
        assert rays[0] == rays[1]
        assert len(ray_clusters(cluster) or ()) == 1
        ArcadiaHook().end(runs[0].handle["lease"], grace_s=1)
        assert ray_clusters(cluster) == []
