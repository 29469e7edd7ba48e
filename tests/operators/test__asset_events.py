"""A batch's assets learn what was written, whichever way the task ended."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import Asset, AssetAlias
from airflow.sdk.execution_time.context import OutletEventAccessors

from airflow_arcadia.batch import BatchSummary
from airflow_arcadia.lease import Lease
from airflow_arcadia.lease_store import LeaseStore
from airflow_arcadia.operators._asset_events import asset_uri, describe_answers, record_answers
from airflow_arcadia.operators.batch import ArcadiaBatchInferenceOperator
from tests.airflow_context import make_context, set_connection
from tests.batch.fake_engine import FakeEngine
from tests.operators.workers import connection, engine, make_worker

__all__ = ["connection", "engine"]

SUMMARY = BatchSummary(
    rows=3,
    ok=3,
    failed=0,
    seconds=2.0,
    tokens_per_s=4.0,
    output="s3://b/k.jsonl",
    completion_tokens=8,
    model="m",
)
ANSWERS = Asset("answers")


def context_with_events() -> dict[str, Any]:
    return {**make_context(), "outlet_events": OutletEventAccessors()}


def event(context: dict[str, Any]) -> dict[str, Any]:
    extra: dict[str, Any] = context["outlet_events"][ANSWERS].extra
    return json.loads(json.dumps(extra))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("failed", "limit", "partial"), [(0, None, False), (1, None, True), (0, 3, True), (0, 4, False)]
)
def test_answers_are_partial_where_rows_of_the_input_have_none(failed: int, limit: int | None, partial: bool):
    summary = BatchSummary(**{**SUMMARY.to_dict(), "failed": failed})
    assert describe_answers(summary, limit)["partial"] is partial


def test_the_event_names_no_password():
    told = describe_answers(BatchSummary(**{**SUMMARY.to_dict(), "output": "ftp://me:secret@host/out.jsonl"}))
    assert told["output"] == "ftp://me:***@host/out.jsonl"


def test_an_alias_gets_the_output_as_its_asset():
    context = context_with_events()
    record_answers(context, [AssetAlias("nightly")], SUMMARY)
    (added,) = context["outlet_events"][AssetAlias("nightly")].asset_alias_events
    assert (added.dest_asset_key.uri, added.extra["rows"]) == ("s3://b/k.jsonl", 3)


def test_a_path_becomes_a_uri(tmp_path: Path):
    assert asset_uri(str(tmp_path / "a b.jsonl")) == f"file://{tmp_path}/a%20b.jsonl"


def batch(worker: Any, tmp_path: Path, **kwargs: Any) -> ArcadiaBatchInferenceOperator:
    (tmp_path / "in.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    return ArcadiaBatchInferenceOperator(
        task_id="answer",
        worker=worker,
        input=str(tmp_path / "in.jsonl"),
        output=str(tmp_path / "out.jsonl"),
        outlets=[ANSWERS],
        **kwargs,
    )


async def test_a_batch_in_the_task_says_what_it_answered(
    engine: FakeEngine,
    store: LeaseStore,
    lease: Lease,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):

    set_connection(monkeypatch, arcadia_config_yaml="rayClusters: []", state_dir=str(store.root))
    worker = make_worker(engine, store, lease).to_dict()
    context = context_with_events()
    await asyncio.to_thread(batch(worker, tmp_path).execute, context)
    told = event(context)
    assert (told["rows"], told["ok"], told["failed"], told["partial"]) == (2, 2, 0, False)
    assert told["output"] == str(tmp_path / "out.jsonl")
    assert told["completion_tokens"] > 0


def test_a_batch_that_was_deferred_says_so_when_it_resumes(tmp_path: Path):
    context = context_with_events()
    operator = batch({}, tmp_path, options={"limit": "3"})
    operator.execute_complete(context, {"summary": SUMMARY.to_dict(), "failed": None, "retryable": False})
    assert (event(context)["output"], event(context)["partial"]) == ("s3://b/k.jsonl", True)
