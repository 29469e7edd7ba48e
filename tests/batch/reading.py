"""Reads what a batch wrote, and waits for what it does."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from airflow_arcadia.batch.openai_format import is_answered


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


def folder_of(output: str) -> list[str]:
    """Names beside the output."""
    return sorted(path.name for path in Path(output).parent.iterdir())


def summary_of(output: str) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads(Path(f"{output}.summary.json").read_text(encoding="utf-8"))
    return summary
