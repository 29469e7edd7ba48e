"""Batches on S3 with an Airflow connection: tasks and workers use its keys, and nobody sees them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowFailException

from airflow_arcadia.batch import BatchSpec
from airflow_arcadia.lease import Lease
from airflow_arcadia.lease_store import LeaseStore
from airflow_arcadia.operators.batch import ArcadiaBatchInferenceOperator, ArcadiaCheckBatchInputOperator
from airflow_arcadia.runtime.access import read_storage_options
from airflow_arcadia.task_groups.worker import ArcadiaWorkerGroup
from tests.airflow_context import make_context
from tests.batch.fake_engine import FakeEngine
from tests.operators.workers import connection, engine, make_worker
from tests.s3 import SECRET, Bucket, bucket, s3_url

__all__ = ["bucket", "connection", "engine", "s3_url"]
ROWS = b'{"prompt": "a"}\n{"prompt": "b"}\n'


def check(bucket: Bucket, storage_conn_id: str | None) -> list[int]:
    bucket.put("in.jsonl", ROWS)
    batch = {
        "input": f"{bucket.uri}/in.jsonl",
        "output": f"{bucket.uri}/out.jsonl",
        "storage_conn_id": storage_conn_id,
    }
    return ArcadiaCheckBatchInputOperator(task_id="check", batches=[batch]).execute(make_context())


def test_check_input_reads_with_the_connections_keys(bucket: Bucket):
    assert check(bucket, "store") == [2]


def test_missing_credentials_are_found_by_check_input_with_what_to_do(bucket: Bucket):
    with pytest.raises(AirflowFailException, match=r"credentials are missing.* storage_conn_id"):
        check(bucket, None)


def test_keys_that_the_store_refuses_are_told_as_credentials():
    from airflow_arcadia.batch.storage import explain

    said = "The AWS Access Key Id you provided does not exist in our records."
    told = explain(PermissionError(said), "The input s3://rows/in.jsonl")
    assert told is not None
    assert "the credentials are missing or wrong" in told.what


async def test_a_batch_of_a_task_uses_them_and_shows_them_nowhere(
    bucket: Bucket,
    engine: FakeEngine,
    store: LeaseStore,
    lease: Lease,
    capfd: pytest.CaptureFixture[str],
):
    engine.failing = {"b": [400]}
    bucket.put("in.jsonl", ROWS)
    worker = make_worker(engine, store, lease).to_dict()
    operator = ArcadiaBatchInferenceOperator(
        task_id="answer",
        worker=worker,
        input=f"{bucket.uri}/in.jsonl",
        output=f"{bucket.uri}/out.jsonl",
        storage_conn_id="store",
    )
    context = make_context()
    summary = await asyncio.to_thread(operator.execute, context)
    assert summary["ok"] == 1
    said = "".join(capfd.readouterr())
    assert "Of the first 1 error rows" in said, "the error rows are read with the keys, too"
    rendered = {name: getattr(operator, name) for name in operator.template_fields}
    for text in (said, json.dumps(summary), json.dumps(context["task_state_store"]), json.dumps(rendered)):
        assert SECRET not in text


def test_the_group_gives_it_to_its_batches_and_to_the_launch():
    with DAG("d", schedule=None), ArcadiaWorkerGroup("w", model="m", storage_conn_id="store") as group:
        own = ArcadiaBatchInferenceOperator(
            task_id="own", worker=group.handle, input="i", output="o", storage_conn_id="mine"
        )
        inherited = ArcadiaBatchInferenceOperator(
            task_id="answer", worker=group.handle, input="i", output="o"
        )
    assert (own.storage_conn_id, inherited.storage_conn_id) == ("mine", "store")
    assert group.launches[0].storage_conn_id == "store"
    (check,) = (task for task in group.dag.tasks if task.task_id == "w.check_input")
    assert [batch["storage_conn_id"] for batch in check.batches] == ["mine", "store"]


def test_a_process_gets_the_options_as_a_file_that_only_its_owner_reads(
    bucket: Bucket, store: LeaseStore, lease: Lease, monkeypatch: pytest.MonkeyPatch
):
    from airflow_arcadia.launchers import process
    from airflow_arcadia.operators.worker import ArcadiaLaunchWorkerOperator
    from airflow_arcadia.processes import ProcessRef

    started: dict[str, Any] = {}

    def spawn(argv: list[str], *, env: dict[str, str], log_path: Path) -> ProcessRef:
        started.update(argv=argv, env=env)
        return ProcessRef(2**22 + 1, 0.0)

    monkeypatch.setattr(process, "spawn", spawn)
    launch = ArcadiaLaunchWorkerOperator(
        task_id="launch", lease=lease.name, model="org/model", storage_conn_id="store"
    )
    handle = launch.execute(make_context())
    path = Path(started["env"]["ARCADIA_STORAGE_OPTIONS_FILE"])
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_storage_options(str(path))["s3"]["secret"] == SECRET
    assert SECRET not in json.dumps([started, handle], default=str)
    assert SECRET not in store.file(lease.name).read_text()


def test_an_arcadia_worker_cannot_be_given_it(bucket: Bucket, monkeypatch: pytest.MonkeyPatch):
    from airflow_arcadia.exceptions import ArcadiaConfigError
    from airflow_arcadia.launchers.arcadia_worker.launcher import CustomResourceLauncher
    from airflow_arcadia.operators._launcher import LaunchRequest, _check_fits

    with pytest.raises(ArcadiaConfigError, match="storage_conn_id is set, but the worker is"):
        _check_fits(LaunchRequest("l", "m", storage_conn_id="store"), CustomResourceLauncher)


def test_a_specs_record_has_no_credentials():
    spec = BatchSpec("s3://b/i", "s3://b/o", "m", storage={"s3": {"secret": SECRET}})
    assert SECRET not in json.dumps(spec.to_dict())
    assert SECRET not in repr(spec)
    assert BatchSpec(**spec.to_dict()) == spec
