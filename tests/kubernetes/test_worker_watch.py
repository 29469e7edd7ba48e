"""A batch in a task watches its workers without asking the API server over and over."""

from __future__ import annotations

import time

import pytest

from airflow_arcadia.hooks.arcadia import ArcadiaHook
from airflow_arcadia.launchers.monitor import WorkerWatch
from airflow_arcadia.worker import WorkerHandle
from tests.conftest import wait_for
from tests.kubernetes.workers import Run, connect, stand_in
from tests.loopback_cluster.cluster import Cluster, Loopback

SECONDS = 4.0


def test_a_worker_that_runs_is_watched_and_its_loss_is_noticed(
    cluster: Cluster, loopback: Loopback, monkeypatch: pytest.MonkeyPatch
):
    connect(monkeypatch, cluster)
    run = Run(cluster, pod=stand_in(cluster))
    run.reserve()
    handle = WorkerHandle.from_dict(run.launch())
    assert run.wait() is None
    asked = loopback.api.requests
    began = len(asked)

    def looks() -> list[str]:
        return [text for text in asked[began:] if text.startswith("GET") and handle.name in text]

    with WorkerWatch(ArcadiaHook().launchers(), [handle]) as watch:
        wait_for(lambda: any("watch=true" in text for text in looks()), 20, "the watch")
        wait_for(lambda: any("/log?" in text for text in looks()), 20, "the first look")
        began, end = len(asked), time.monotonic() + SECONDS
        wait_for(lambda: time.monotonic() > end, SECONDS + 5, "some seconds to pass")
        # A change of the pod is looked into; polling was two to three requests a second.
        assert len(looks()) < SECONDS, looks()
        cluster.core.delete_namespaced_pod(handle.where["pod"], cluster.namespace, grace_period_seconds=0)
        wait_for(lambda: watch.all_lost, 20, "the loss to be noticed")
    assert "ended while the batch ran" in str(watch.error())
    run.teardown(grace=0)
