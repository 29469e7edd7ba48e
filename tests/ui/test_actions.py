"""What the page's buttons do to real workers."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from airflow_arcadia.batch import BatchSpec, Endpoint
from airflow_arcadia.batch.batch_api import RemoteBatches
from airflow_arcadia.batch.openai_format import CHAT
from airflow_arcadia.exceptions import ArcadiaConfigError
from airflow_arcadia.kubernetes.pod_template import BATCH_TOKEN
from airflow_arcadia.lease import Lease
from airflow_arcadia.lease_store import LeaseStore
from airflow_arcadia.operators._failed_rows import CONF_KEY
from airflow_arcadia.ui import actions, database, snapshot, view
from airflow_arcadia.ui.retry import Node
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
    monkeypatch.setattr(snapshot, "connection_ids", lambda: ["arcadia_default"])
    rows = tmp_path / "in.jsonl"
    body = {"messages": [{"role": "user"}], "prompt": "a", "wait": True}
    rows.write_text(f"{json.dumps({'url': CHAT, 'body': body})}\n" * 3)

    async with worker(batch_token_file=str(token_file)) as (url, served):
        batches = RemoteBatches(Endpoint(url), TOKEN)
        spec = BatchSpec(str(rows), str(tmp_path / "out.jsonl"), "tiny", max_in_flight=1)
        name = await batches.submit(spec)
        await until(lambda: served.begun == 1)
        handle = WorkerHandle("w", lease.name, "process", url, "tiny", 1).to_dict()
        task = Task("dag", "run", "qwen.answer", -1, "O", "deferred", store={"batch_id": name})
        elsewhere = {**handle, "url": "http://127.0.0.1:9", "lease": "of-another-group"}
        launches = [
            Task("dag", "run", f"{group}.launch_worker", -1, view.LAUNCH_OPERATOR, "success", value=value)
            for group, value in (("other", elsewhere), ("qwen", handle))
        ]
        monkeypatch.setattr(database, "batch_task", lambda *_: task)
        monkeypatch.setattr(database, "mark_failed", lambda *_: False)
        monkeypatch.setattr(database, "run_tasks", lambda _: launches)

        said = await asyncio.to_thread(actions.cancel_batch, "dag", "run", "qwen.answer", -1)
        assert name in said
        assert (await batches.get(name))["status"] in {"cancelling", "cancelled"}


def test_a_batch_that_runs_in_its_task_is_cancelled_by_failing_the_task(monkeypatch):
    task = Task("dag", "run", "w.answer", -1, "O", "running")
    failed = []
    monkeypatch.setattr(database, "batch_task", lambda *_: task)
    monkeypatch.setattr(database, "mark_failed", lambda *key: failed.append(key) or True)
    assert "stops at the next committed row" in actions.cancel_batch("dag", "run", "w.answer", -1)
    assert failed == [("dag", "run", "w.answer", -1)]


@pytest.mark.parametrize("state", ["success", "queued", None])
def test_a_batch_that_does_not_run_cannot_be_cancelled(monkeypatch, state):
    monkeypatch.setattr(database, "batch_task", lambda *_: Task("dag", "run", "w.answer", -1, "O", state))
    monkeypatch.setattr(database, "mark_failed", lambda *_: False)
    with pytest.raises(ArcadiaConfigError, match="does not run now"):
        actions.cancel_batch("dag", "run", "w.answer", -1)


SUMMARY = {"rows": 9, "ok": 7, "failed": 2, "output": "o", "completion_id": "abc"}


class Retried:
    """What was cleared and what the run's configuration became."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, state: str, value: object, **store: object) -> None:
        task = Task("dag", "run", "w.answer", -1, "O", state, 1.0, 2.0, value=value, store=store)
        self.cleared: set[str] = set()
        self.conf: dict[str, object] = {}
        monkeypatch.setattr(database, "batch_task", lambda *_: task)
        monkeypatch.setattr(database, "clear_for_retry", self._clear)

    def _clear(self, dag_id, run_id, map_index, choose, change_conf) -> list[str]:
        graph = {"w.answer": Node("ArcadiaBatchInferenceOperator", frozenset(), frozenset())}
        self.cleared = set(choose(graph, {"w.answer": ["success"]}))
        self.conf = change_conf({"limit": 3})
        return sorted(self.cleared)


@pytest.mark.parametrize(
    ("state", "value", "store", "completion"),
    [
        ("success", SUMMARY, {}, "abc"),
        ("failed", None, {"progress": {"done": 5, "total": 9, "failed": 3}}, ""),
    ],
)
def test_a_retry_of_failed_rows_clears_the_batch_and_asks_for_them_in_the_runs_configuration(
    monkeypatch, state, value, store, completion
):
    retried = Retried(monkeypatch, state, value, **store)
    assert "failed rows are answered again" in actions.retry_failed_rows("dag", "run", "w.answer", -1)
    assert retried.cleared == {"w.answer"}
    assert retried.conf == {"limit": 3, CONF_KEY: {"w.answer": completion}}


@pytest.mark.parametrize(
    ("state", "value", "said"),
    [
        ("running", SUMMARY, "no failed rows"),
        ("success", {**SUMMARY, "failed": 0}, "no failed rows"),
        ("failed", None, "no failed rows"),
        ("success", {**SUMMARY, "completion_id": ""}, "earlier version"),
    ],
)
def test_a_retry_without_failed_rows_is_refused(monkeypatch, state, value, said):
    retried = Retried(monkeypatch, state, value)
    with pytest.raises(ArcadiaConfigError, match=said):
        actions.retry_failed_rows("dag", "run", "w.answer", -1)
    assert retried.cleared == set()
