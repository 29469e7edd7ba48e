"""Batches on a real engine: sent by a task, run by the worker, and gone on with after it was killed."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from airflow.sdk.exceptions import TaskDeferred

from airflow_arcadia.batch import BatchSpec, Endpoint, run_batch
from airflow_arcadia.batch.batch_api import TOKEN_HEADER, Completed, Ended, Running, judge
from airflow_arcadia.batch.openai_format import is_answered
from airflow_arcadia.operators.batch import BATCH_KEY, ArcadiaBatchInferenceOperator
from airflow_arcadia.readiness import Ready
from tests.airflow_context import make_context, set_connection
from tests.conftest import wait_for
from tests.engine.serving import TOKEN, Served, relaunch, served

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]
KEY = "the-key"
ROWS = 600


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("batches")


@pytest.fixture(scope="module")
def worker(folder: Path, worker_python: str, tiny_model: str) -> Iterator[Served]:
    settings = {"api_key": KEY, "served_model_name": "tiny"}
    with served(folder / "worker", worker_python, tiny_model, **settings) as running:
        yield running


@pytest.fixture(scope="module")
def source(folder: Path) -> str:
    """Rows of every kind: chats, prompts, whole requests, one too long, one that is not JSON."""
    lines = []
    for number in range(ROWS):
        kind = number % 3
        text = f"def function_{number}(value):"
        if kind == 0:
            row: dict[str, Any] = {"messages": [{"role": "user", "content": text}]}
        elif kind == 1:
            row = {"custom_id": "the same", "prompt": text}
        else:
            body = {"prompt": text, "max_tokens": 3 + number % 20}
            row = {"custom_id": str(number), "method": "POST", "url": "/v1/completions", "body": body}
        lines.append(json.dumps(row))
    lines[10] = json.dumps({"prompt": "too long " * 2000})
    lines[20] = "no json"
    path = folder / "rows.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def spec(source: str, output: Path, **options: Any) -> BatchSpec:
    parameters = {"max_tokens": 16, "temperature": 0}
    return BatchSpec(source, str(output), "tiny", parameters, max_in_flight=64, **options)


@pytest.fixture(scope="module")
def undisturbed(worker: Served, source: str, folder: Path) -> bytes:
    """The output of a run in one go, sent from outside."""
    output = folder / "undisturbed.jsonl"
    summary = run_batch(spec(source, output), [Endpoint(worker.url, KEY)])
    assert (summary.rows, summary.ok, summary.failed) == (ROWS, ROWS - 2, 2)
    return output.read_bytes()


def test_error_rows_say_why(undisturbed: bytes):
    rows = [json.loads(line) for line in undisturbed.splitlines()]
    assert [number for number, row in enumerate(rows) if not is_answered(row)] == [10, 20]
    refusal = rows[10]["response"]
    assert refusal["status_code"] == 400
    assert "context" in refusal["body"]["error"]["message"].lower()
    assert [row["custom_id"] for row in rows[1:9:3]] == ["the same"] * 3


def wait_until_ended(worker: Served, name: str) -> Completed | Ended:
    batches = worker.batches

    def ended() -> Completed | Ended | None:
        state = judge(asyncio.run(batches.get(name)))
        return None if isinstance(state, Running) else state

    return wait_for(ended, 120, "the batch to end")


def test_the_worker_gives_the_same_bytes_when_it_runs_the_batch_itself(
    worker: Served, source: str, folder: Path, undisturbed: bytes
):
    batches = worker.batches
    job = spec(source, folder / "by-worker.jsonl")
    name = asyncio.run(batches.submit(job))
    assert asyncio.run(batches.submit(job)) == name
    assert isinstance(wait_until_ended(worker, name), Completed)
    assert (folder / "by-worker.jsonl").read_bytes() == undisturbed
    described = asyncio.run(batches.get(name))
    assert described["request_counts"] == {"total": ROWS, "completed": ROWS - 2, "failed": 2}
    assert (described["object"], described["output_file_id"]) == ("batch", str(folder / "by-worker.jsonl"))
    listed = worker_get(worker, "/v1/batches")
    assert name in [batch["id"] for batch in listed["data"]]


def worker_get(worker: Served, path: str) -> Any:
    import requests

    headers = {"Authorization": f"Bearer {KEY}", TOKEN_HEADER: TOKEN}
    return requests.get(worker.url + path, headers=headers, timeout=10).json()


def test_an_operator_defers_to_the_worker_and_takes_its_summary(
    worker: Served, source: str, folder: Path, undisturbed: bytes, monkeypatch: pytest.MonkeyPatch
):
    set_connection(monkeypatch, KEY, arcadia_config_yaml="rayClusters: []", state_dir=str(worker.store.root))
    context = make_context()
    operator = ArcadiaBatchInferenceOperator(
        task_id="answer",
        worker=worker.handle.to_dict(),
        input=source,
        output=str(folder / "deferred.jsonl"),
        parameters={"max_tokens": 16, "temperature": 0},
        options={"max_in_flight": 64},
        run_in="worker",
        progress_interval=0.2,
    )
    with pytest.raises(TaskDeferred) as deferred:
        operator.execute(context)
    assert deferred.value.timeout is not None
    path, arguments = deferred.value.trigger.serialize()
    assert path == "airflow_arcadia.triggers.batch.ArcadiaBatchInferenceTrigger"
    assert KEY not in json.dumps(arguments)
    assert context["task_state_store"][BATCH_KEY] == arguments["batch_id"]

    event = asyncio.run(deferred.value.trigger.wait())
    summary = operator.execute_complete(context, event.payload)
    assert summary["ok"] == ROWS - 2
    assert (folder / "deferred.jsonl").read_bytes() == undisturbed


def test_a_cancelled_batch_keeps_what_is_committed_and_can_be_gone_on_with(
    worker: Served, source: str, folder: Path, undisturbed: bytes
):
    batches = worker.batches
    job = spec(source, folder / "cancelled.jsonl")
    name = asyncio.run(batches.submit(job))
    asyncio.run(batches.cancel(name))
    assert wait_until_ended(worker, name) == Ended("The batch was cancelled.")
    assert not (folder / "cancelled.jsonl").exists()
    assert asyncio.run(batches.submit(job)) == name
    assert isinstance(wait_until_ended(worker, name), Completed)
    assert (folder / "cancelled.jsonl").read_bytes() == undisturbed


def test_structured_output_and_parameters_of_a_row_reach_the_engine(worker: Served, folder: Path):
    schema = {"name": "verdict", "schema": {"type": "string", "enum": ["yes", "no"]}}
    message = {"role": "user", "content": "Is it?"}
    rows = [
        {"messages": [message], "response_format": {"type": "json_schema", "json_schema": schema}},
        {"messages": [message], "max_tokens": 3, "min_tokens": 3},
    ]
    (folder / "structured.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    job = spec(str(folder / "structured.jsonl"), folder / "structured-out.jsonl")
    assert run_batch(job, [Endpoint(worker.url, KEY)]).failed == 0
    answers = [json.loads(line) for line in (folder / "structured-out.jsonl").read_text().splitlines()]
    bodies = [answer["response"]["body"] for answer in answers]
    assert json.loads(bodies[0]["choices"][0]["message"]["content"]) in {"yes", "no"}
    assert bodies[1]["usage"]["completion_tokens"] == 3


def test_a_request_that_makes_no_sense_is_refused(worker: Served):
    for body in ({}, {"input_file_id": "a", "options": {"no_such": 1}}, ["a"]):
        assert worker.post("/v1/batches", body).status_code == 400
    assert worker.post("/v1/batches/batch_unknown/cancel", {}).status_code == 404


def test_a_batch_survives_the_death_of_the_worker_that_runs_it(
    worker: Served, source: str, folder: Path, undisturbed: bytes
):
    """Killed with rows committed and rows in flight; launched again under its lease, it goes on by itself."""
    output = folder / "survivor.jsonl"
    batches = worker.batches
    name = asyncio.run(batches.submit(spec(source, output, segment_rows=20)))
    parts = folder / ".survivor.jsonl.parts"
    wait_for(lambda: list(parts.glob("seg-*")), 60, "a committed segment")
    process = psutil.Process(worker.handle.where["pid"])
    process.kill()
    process.wait(20)
    assert not output.exists()
    began = time.time()
    relaunch(worker)
    assert isinstance(worker.wait_until_decided(), Ready)
    state = wait_until_ended(worker, name)
    assert isinstance(state, Completed)
    assert state.summary["attempts"] == 2
    assert state.summary["resumed_rows"] >= 20
    assert output.read_bytes() == undisturbed
    assert time.time() - began < 300
