"""``@task.arcadia_batch``: rows that a function returns are answered; another attempt goes on with them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG, task
from airflow.sdk.exceptions import AirflowFailException, TaskDeferred

from airflow_arcadia import ArcadiaWorkerGroup
from airflow_arcadia.decorators.batch import ArcadiaBatchDecoratedOperator, arcadia_batch_task
from airflow_arcadia.provider_info import get_provider_info
from tests.airflow_context import make_context
from tests.batch.fake_engine import FakeEngine
from tests.operators.workers import connection, engine, worker

__all__ = ["connection", "engine", "worker"]


def operator(
    function: Callable[..., Any], worker: Any, tmp_path: Path, **more: Any
) -> ArcadiaBatchDecoratedOperator:
    return ArcadiaBatchDecoratedOperator(
        task_id="answer",
        python_callable=function,
        worker=worker,
        output=str(tmp_path / "out.jsonl"),
        **more,
    )


async def run(made: ArcadiaBatchDecoratedOperator, context: Any = None) -> dict[str, Any]:
    return await asyncio.to_thread(made.execute, context or make_context())


def texts(tmp_path: Path) -> list[str]:
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    return [json.loads(line)["response"]["body"]["choices"][0]["text"] for line in lines]


def test_airflow_knows_the_decorator_and_its_task_depends_on_the_worker():
    (known,) = get_provider_info()["task-decorators"]
    assert known == {
        "name": "arcadia_batch",
        "class-name": f"{arcadia_batch_task.__module__}.{arcadia_batch_task.__name__}",
    }
    with DAG("d", schedule=None), ArcadiaWorkerGroup("qwen", model="m") as group:

        @arcadia_batch_task(worker=group.handle, output="/answers/{{ ds }}.jsonl")
        def answer(topic: str) -> list[str]:
            return [topic]

        answer("a topic")
    found = group.dag.get_task("qwen.answer")
    assert found.upstream_task_ids >= {"qwen.model_ready"}
    assert found.custom_operator_name == "@task.arcadia_batch"
    assert found.input == "/answers/{{ ds }}.jsonl.input.jsonl"


def test_the_decorator_is_airflows_own_attribute_of_task():
    assert task.arcadia_batch.__name__ == arcadia_batch_task.__name__


async def test_rows_and_prompts_that_a_function_returns_are_answered_in_their_order(
    worker: dict[str, Any], tmp_path: Path, engine: FakeEngine
):
    def rows(count: int, ds: str | None = None) -> list[Any]:
        return [{"prompt": "first", "custom_id": "own"}, *(f"p{n} {ds}" for n in range(count))]

    made = operator(rows, worker, tmp_path, op_args=[2], parameters={"max_tokens": 3})
    summary = await run(made, {**make_context(), "ds": "2026-01-01"})
    assert (summary["rows"], summary["ok"]) == (3, 3)
    sent = [json.loads(line) for line in (tmp_path / "out.jsonl.input.jsonl").read_text().splitlines()]
    assert sent == [
        {"prompt": "first", "custom_id": "own"},
        {"prompt": "p0 2026-01-01"},
        {"prompt": "p1 2026-01-01"},
    ]
    assert len(texts(tmp_path)) == 3
    assert engine.bodies[-1]["max_tokens"] == 3


async def test_another_attempt_sends_no_row_that_is_answered(
    worker: dict[str, Any], tmp_path: Path, engine: FakeEngine
):
    calls = []

    def rows() -> list[str]:
        calls.append(1)
        return ["a", "b"]

    await run(operator(rows, worker, tmp_path))
    asked = len(engine.bodies)
    again = await run(operator(rows, worker, tmp_path))
    assert (len(calls), again["ok"], len(engine.bodies)) == (2, 2, asked)


async def test_other_rows_than_those_that_were_answered_are_refused(worker: dict[str, Any], tmp_path: Path):
    await run(operator(lambda: ["a"], worker, tmp_path))
    with pytest.raises(AirflowFailException, match="input"):
        await run(operator(lambda: ["b"], worker, tmp_path))


async def test_a_uri_that_a_function_returns_is_the_input(worker: dict[str, Any], tmp_path: Path):
    source = tmp_path / "own.jsonl"
    source.write_text('{"prompt": "a"}\n')
    summary = await run(operator(lambda: str(source), worker, tmp_path))
    assert summary["ok"] == 1
    assert not (tmp_path / "out.jsonl.input.jsonl").exists()


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ([], "There are no rows"),
        (["a", 5], "Row 2 is a int, not a mapping or a prompt"),
        ([{"prompt": object()}], "Row 1 is not JSON"),
    ],
)
async def test_what_is_not_a_row_is_refused_before_one_is_sent(
    worker: dict[str, Any], tmp_path: Path, engine: FakeEngine, made: Any, said: str
):
    with pytest.raises(AirflowFailException, match=said):
        await run(operator(lambda: made, worker, tmp_path))
    assert engine.bodies == []
    assert list(tmp_path.glob("out.jsonl*")) == []


async def test_after_a_deferral_the_input_is_what_the_function_named(
    worker: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    source = tmp_path / "own.jsonl"
    source.write_text('{"prompt": "a"}\n')
    first, context = operator(lambda: str(source), worker, tmp_path, run_in="worker"), make_context()
    monkeypatch.setattr(type(first), "_submit", lambda *_: asyncio.sleep(0, "batch_1"))
    with pytest.raises(TaskDeferred):
        await run(first, context)
    # The batch is answered meanwhile, and the worker is gone.
    await run(operator(lambda: str(source), worker, tmp_path))

    def never() -> str:
        raise AssertionError("called again after a deferral")

    later = operator(never, worker, tmp_path, run_in="worker")
    event = {"failed": "the worker is gone", "retryable": False, "summary": None}
    summary = await asyncio.to_thread(later.resume_execution, "execute_complete", {"event": event}, context)
    assert (summary["ok"], later.input) == (1, str(source))
