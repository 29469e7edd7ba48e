"""Reads what a batch wrote, waits for what it does, and stops it half-way."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airflow_arcadia.batch import BatchSpec, Endpoint, run_batch_async
from airflow_arcadia.batch.openai_format import is_answered
from airflow_arcadia.exceptions import BatchError
from tests.batch.fake_engine import FakeEngine


def answers(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(output).read_text(encoding="utf-8").splitlines()]


def text_of(row: dict[str, Any]) -> str:
    choice = row["response"]["body"]["choices"][0]
    return choice["text"] if "text" in choice else choice["message"]["content"]


def codes(output: str) -> list[str | None]:
    """The code of each error row; None for an answer."""
    return [code_of(row) for row in answers(output)]


def code_of(row: dict[str, Any]) -> str | None:
    if is_answered(row):
        return None
    error = row["error"] or row["response"]["body"]["error"]
    return str(error["code"])


async def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    async def wait() -> None:
        while True:
            if condition():
                return
            await asyncio.sleep(0.005)

    await asyncio.wait_for(wait(), seconds)


async def stopped_after(job: BatchSpec, engine: FakeEngine, rows: int) -> BatchError:
    """Run the batch until the engine has seen so many rows more, and stop it; returns how it ended.

    The engine answers no row beyond these, so that the batch cannot be done before it looks for the stop.
    """
    target = engine.row_limit = engine.seen.total() + rows
    with pytest.raises(BatchError, match="was stopped after") as raised:
        await run_batch_async(job, [Endpoint(engine.url)], should_stop=lambda: engine.seen.total() > target)
    engine.row_limit = None
    return raised.value


def folder_of(output: str) -> list[str]:
    """Names beside the output."""
    return sorted(path.name for path in Path(output).parent.iterdir())


def summary_of(output: str) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads(Path(f"{output}.summary.json").read_text(encoding="utf-8"))
    return summary
