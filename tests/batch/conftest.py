"""Files of rows, and a server to answer them."""

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.batch.fake_engine import FakeEngine, serving


@pytest.fixture
async def engine() -> AsyncIterator[FakeEngine]:
    async with serving() as running:
        yield running


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., str]:
    """Writes rows (objects, or text as it is) as ``in.jsonl`` and returns its path."""

    def write(*rows: Any, name: str = "in.jsonl") -> str:
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path = tmp_path / name
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return str(path)

    return write


@pytest.fixture
def output(tmp_path: Path) -> str:
    return str(tmp_path / "out" / "answers.jsonl")
