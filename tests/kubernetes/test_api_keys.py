"""The API key that a worker's pod gets where the connection gives none: who knows it, and who does not."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from airflow.sdk.exceptions import AirflowFailException

from airflow_arcadia.hooks.arcadia import ArcadiaHook
from airflow_arcadia.launchers.base import Credentials
from airflow_arcadia.operators.batch import ArcadiaBatchInferenceOperator
from airflow_arcadia.operators.worker import ArcadiaLaunchWorkerOperator
from airflow_arcadia.sensors.worker import ArcadiaModelReadySensor
from airflow_arcadia.worker import WorkerHandle
from tests.airflow_context import make_context
from tests.conftest import wait_for
from tests.kubernetes.workers import Run, connect, stand_in
from tests.loopback_cluster.cluster import Cluster, Loopback


@pytest.fixture
def run(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Run:
    connect(monkeypatch, cluster)
    made = Run(cluster, pod=stand_in(cluster))
    made.reserve()
    return made


def secret_of(run: Run) -> dict[str, str]:
    kept = run.cluster.core.read_namespaced_secret(f"{run.lease}-worker", run.cluster.namespace)
    return {key: base64.b64decode(value).decode() for key, value in kept.data.items()}


def credentials(run: Run) -> Credentials:
    return asyncio.run(ArcadiaHook().credentials(WorkerHandle.from_dict(run.handle)))


def batch(run: Run, folder: Path, **more: Any) -> ArcadiaBatchInferenceOperator:
    (folder / "in.jsonl").write_text('{"prompt": "a"}\n')
    where = {"input": str(folder / "in.jsonl"), "output": str(folder / "out.jsonl")}
    return ArcadiaBatchInferenceOperator(task_id="answer", worker=run.handle, **where, **more)


def test_without_a_password_a_worker_asks_for_a_random_key_that_its_tasks_read(run: Run):
    run.launch()
    key = secret_of(run)["api-key"]
    assert len(key) >= 43, "32 random bytes"
    assert credentials(run).api_key == key
    assert run.wait() is None, "the stand-in answers nobody without its key"
    sensor = ArcadiaModelReadySensor(task_id="ready", worker=run.handle, mode="reschedule")
    sensor._started_at = time.time()
    assert sensor.poke(make_context(run.run_id)).is_done
    run.teardown()


def test_the_key_is_in_the_secret_and_nowhere_else(
    run: Run, cluster: Cluster, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
):
    caplog.set_level("DEBUG")
    operator = ArcadiaLaunchWorkerOperator(
        task_id="launch",
        lease=run.lease,
        model="m/tiny",
        pod={"image": cluster.python_image, **run.pod},
    )
    run.handle = operator.execute(make_context(run.run_id))
    assert run.wait() is None
    key = secret_of(run)["api-key"]
    lease = cluster.coordination.read_namespaced_lease(run.lease, cluster.namespace)
    rendered = [getattr(operator, name) for name in operator.template_fields]
    public = [
        json.dumps(run.handle),
        json.dumps(rendered),
        json.dumps(cluster.pod(run.handle["where"]["pod"])),
        str(lease),
        repr(credentials(run)),
        caplog.text,
        *capfd.readouterr(),
        *[" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])],
    ]
    assert not [text for text in public if key in text]
    run.teardown()


def test_two_workers_of_a_lease_have_different_keys(run: Run, cluster: Cluster):
    first = run.launch()
    second = run.launch(index=1, pod={"image": cluster.python_image, **stand_in(cluster)})
    hook = ArcadiaHook()
    keys = {
        asyncio.run(hook.credentials(WorkerHandle.from_dict(handle))).api_key for handle in (first, second)
    }
    assert len(keys) == 2
    assert None not in keys
    run.teardown()


def test_another_attempt_keeps_the_key_of_the_first(run: Run, cluster: Cluster):
    run.launch()
    key = secret_of(run)["api-key"]
    cluster.core.delete_namespaced_pod(run.handle["where"]["pod"], cluster.namespace, grace_period_seconds=0)
    run.launch(try_number=2)
    assert secret_of(run)["api-key"] == key
    assert run.wait() is None
    run.teardown()


def test_the_key_of_the_launch_holds_although_the_connection_got_another_password(
    run: Run, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
):
    run.launch()
    key = secret_of(run)["api-key"]
    connect(monkeypatch, cluster, password="set-meanwhile")
    assert credentials(run).api_key == key
    assert run.wait() is None
    run.teardown()


def test_a_connection_can_have_workers_without_a_key(
    run: Run, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
):
    connect(monkeypatch, cluster, generate_api_key="false")
    run.launch()
    assert set(secret_of(run)) == {"batch-token"}
    assert credentials(run).api_key is None
    assert run.wait() is None
    run.teardown()


def test_a_key_that_may_not_be_read_is_an_error_that_names_the_right(
    run: Run, loopback: Loopback, tmp_path: Path
):
    run.launch()
    handle = WorkerHandle.from_dict(run.handle)
    assert wait_for(lambda: ArcadiaHook().look(handle).generates, 20, "the stand-in to serve")
    loopback.deny("get", "secrets")
    assert not ArcadiaHook().look(handle).generates, "a warm worker whose key cannot be read is not kept"
    said = "may not get secrets .*Add the verb 'get' on 'secrets' to its Role"
    assert "may not get secrets" in str(run.wait(startup_timeout=20))
    for run_in in ("task", "worker"):
        with pytest.raises(AirflowFailException, match=said):
            batch(run, tmp_path, run_in=run_in).execute(make_context(run.run_id))
    loopback.obey_all()
    run.teardown()


def test_a_key_whose_secret_was_deleted_is_an_error_that_says_what_to_do(
    run: Run, cluster: Cluster, tmp_path: Path
):
    run.launch()
    cluster.core.delete_namespaced_secret(f"{run.lease}-worker", cluster.namespace)
    name = f"{cluster.namespace}/{run.lease}-worker"
    said = f"Secret {name}, .*does not exist.*clear the run from its reserve task"
    with pytest.raises(AirflowFailException, match=said):
        batch(run, tmp_path).execute(make_context(run.run_id))
    run.teardown()


def test_an_api_server_that_is_away_is_waited_for_before_the_key_is_read(
    run: Run, loopback: Loopback, capsys: pytest.CaptureFixture[str]
):
    run.launch()
    loopback.stop_api()
    back = threading.Timer(2.0, loopback.start_api)  # how long it is away: what is tested
    back.start()
    assert run.wait() is None
    back.join()
    run.teardown()
