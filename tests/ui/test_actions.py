"""What the page's buttons do to real workers."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from airflow_arcadia.batch import BatchSpec, Endpoint
from airflow_arcadia.batch.batch_api import RemoteBatches
from airflow_arcadia.batch.openai_format import CHAT
from airflow_arcadia.kubernetes.pod_template import BATCH_TOKEN
from airflow_arcadia.lease import Lease
from airflow_arcadia.lease_store import LeaseStore
from airflow_arcadia.ui import actions, database
from airflow_arcadia.ui.view import Task
from airflow_arcadia.worker import WorkerHandle
from tests.batch.reading import until
from tests.runtime.serving import worker

TOKEN = "the-token"


async def test_a_batch_of_the_runs_own_task_is_cancelled(
    store: LeaseStore, lease: Lease, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The worker shows such a batch only to who sends the run's token."""
    token_file = store.write_secret(lease.name, BATCH_TOKEN, TOKEN)
    extra = {"state_dir": str(tmp_path / "state")}
    connection = json.dumps({"conn_type": "arcadia", "extra": extra})
    monkeypatch.setenv("AIRFLOW_CONN_ARCADIA_DEFAULT", connection)
    monkeypatch.setattr(actions, "connection_ids", lambda: ["arcadia_default"])
    rows = tmp_path / "in.jsonl"
    body = {"messages": [{"role": "user"}], "prompt": "a", "wait": True}
    rows.write_text(f"{json.dumps({'url': CHAT, 'body': body})}\n" * 3)

    async with worker(batch_token_file=str(token_file)) as (url, served):
        batches = RemoteBatches(Endpoint(url), TOKEN)
        spec = BatchSpec(str(rows), str(tmp_path / "out.jsonl"), "tiny", max_in_flight=1)
        name = await batches.submit(spec)
        await until(lambda: served.begun == 1)
        handle = WorkerHandle("w", lease.name, "process", url, "tiny", 1).to_dict()
        task = SimpleNamespace(state="deferred", store={"batch_id": name})
        elsewhere = {**handle, "url": "http://127.0.0.1:9", "lease": "of-another-group"}
        launches = [
            Task("dag", "run", f"{group}.launch_worker", -1, database.LAUNCH_OPERATOR, "success", value=value)
            for group, value in (("other", elsewhere), ("qwen", handle))
        ]
        monkeypatch.setattr(database, "batch_task", lambda *_: task)
        monkeypatch.setattr(database, "run_tasks", lambda _: launches)

        said = await asyncio.to_thread(actions.cancel_batch, "dag", "run", "qwen.answer", -1)
        assert name in said
        assert (await batches.get(name))["status"] in {"cancelling", "cancelled"}
