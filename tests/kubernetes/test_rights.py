"""A 403 of an API server that has just started is not a missing right."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from airflow_arcadia.hooks.kubernetes import kubernetes_api
from airflow_arcadia.kubernetes.errors import KubernetesForbiddenError
from airflow_arcadia.kubernetes.kinds import LEASE, POD
from airflow_arcadia.kubernetes.rights import PATIENCE_S, MissingRights
from airflow_arcadia.launchers.teardown import teardown_in_cluster
from tests.deploy.manifests import role
from tests.kubernetes.workers import Run, connect, stand_in
from tests.loopback_cluster.api import collector
from tests.loopback_cluster.cluster import Cluster, Loopback

ROUNDS = 6


def test_a_right_is_missing_once_it_was_denied_for_long_enough_counted_from_the_first_time():
    now = 100.0
    rights = MissingRights(clock=lambda: now)
    assert not rights.believed("get", LEASE)
    now += PATIENCE_S - 0.1
    assert not rights.believed("get", LEASE)
    assert not rights.believed("get", POD), "another right was not asked for yet"
    now += 0.1
    assert rights.believed("get", LEASE)
    rights.granted("get", LEASE)
    assert not rights.believed("get", LEASE)
    now += PATIENCE_S
    rights.forget()
    assert not rights.believed("get", LEASE), "the server was away and may have started anew"


@pytest.fixture
def run_of(cluster: Cluster, loopback: Loopback, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Run]:
    """Launched workers, under the shipped Role alone."""
    connect(monkeypatch, cluster)
    loopback.obey([role("airflow-arcadia", "tests")])

    def launched(number: int) -> Run:
        run = Run(cluster, f"manual__{number}", stand_in(cluster))
        run.reserve()
        run.launch()
        return run

    return launched


def restart(loopback: Loopback) -> threading.Thread:
    """Take the API server away now, and start it anew half a second later."""
    loopback.stop_api()
    coming = threading.Timer(0.5, loopback.start_api)
    coming.start()
    return coming


def test_waits_and_teardowns_survive_an_api_server_that_has_not_loaded_its_roles(
    run_of: Any, loopback: Loopback
):
    for number in range(ROUNDS):
        run = run_of(number)
        for step in (run.wait, partial(run.teardown, grace=1)):
            coming = restart(loopback)
            assert step() is None
            coming.join()
        assert run.objects == []


def test_a_watch_survives_an_api_server_that_has_not_loaded_its_roles(cluster: Cluster, loopback: Loopback):
    api = kubernetes_api(cluster.airflow_connection["extra"], cluster.namespace, 0.0)

    async def until_it_is_seen() -> None:
        async with api.session() as session:
            restarted = False
            async for found in session.changes(LEASE):
                if found == [] and not restarted:
                    restarted = True
                    loopback.stop_api()
                    loopback.start_api()
                    loopback.fail(403, verb="watch", resource="leases")
                elif found == [] and restarted:
                    return

    asyncio.run(asyncio.wait_for(until_it_is_seen(), 20))


def test_without_the_right_to_delete_leases_everything_else_is_deleted(run_of: Any, loopback: Loopback):
    run = run_of(0)
    loopback.deny("delete", "leases")
    with pytest.raises(KubernetesForbiddenError, match="may not delete leases") as denied:
        tear_down(run)
    assert f"Still there: Lease tests/{run.lease}." in str(denied.value)
    assert [item.split()[-1] for item in run.objects] == [run.lease], "the Lease alone"
    loopback.obey_all()
    run.teardown()
    assert run.objects == []


def test_without_the_right_to_delete_pods_the_error_says_what_still_runs(
    run_of: Any, loopback: Loopback, monkeypatch: pytest.MonkeyPatch
):
    # A collector slower than any teardown: what is not deleted by name stays.
    monkeypatch.setattr(collector, "collect", lambda store: None)
    run = run_of(0)
    loopback.deny("delete", "pods")
    with pytest.raises(KubernetesForbiddenError, match="may not delete pods") as denied:
        tear_down(run)
    assert f"Pod tests/{run.lease}-worker" in denied.value.still_running
    assert "Nothing was started" not in str(denied.value)
    loopback.obey_all()
    run.teardown(grace=1)


def tear_down(run: Run) -> None:
    """As the operator does, with the error that it turns into one of Airflow's."""
    api = kubernetes_api(run.cluster.airflow_connection["extra"], run.cluster.namespace)
    teardown_in_cluster(api, run.lease, {}, grace_s=1)
