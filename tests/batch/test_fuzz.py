"""No input file crashes a batch: it is refused at the door, or every row has a line in the output."""

import asyncio
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_arcadia.batch import BatchSpec, Endpoint, check_input, run_batch_async
from airflow_arcadia.batch.input.row_parser import Shape
from airflow_arcadia.batch.openai_format import Request, RowError, is_answered
from airflow_arcadia.exceptions import BatchInputError
from tests.batch.fake_engine import serving

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
KEYS = st.sampled_from(
    ["custom_id", "method", "url", "body", "prompt", "messages", "input", "model", "max_tokens", "x"]
)
VALUES = JSON | st.sampled_from(["POST", "/v1/completions", "/v1/chat/completions", "/v1/embeddings"])
ROWS = st.dictionaries(KEYS, VALUES | st.dictionaries(KEYS, VALUES, max_size=4), max_size=5)
LINES = st.one_of(
    st.binary(max_size=60),
    st.text(max_size=40).map(str.encode),
    ROWS.map(lambda row: json.dumps(row).encode()),
    st.text(max_size=20).map(lambda text: json.dumps({"prompt": text}, ensure_ascii=False).encode()),
)
FILES = st.one_of(
    st.lists(LINES, max_size=12).map(b"\n".join),
    st.text(max_size=200).map(lambda text: text.encode("utf-16")),
    st.text(max_size=200).map(lambda text: text.encode("utf-8-sig")),
    st.binary(max_size=400),
)


async def answer(content: bytes, name: str, **options: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path, output = Path(folder) / name, Path(folder) / "out.jsonl"
        path.write_bytes(content)
        spec = BatchSpec(str(path), str(output), "tiny", max_attempts=1, max_failed_fraction=1.0, **options)
        try:
            rows = check_input(spec)
        except BatchInputError:
            assert [file.name for file in Path(folder).iterdir()] == [name]
            return
        async with serving() as engine:
            summary = await run_batch_async(spec, [Endpoint(engine.url)])
        lines = [json.loads(line) for line in output.read_bytes().splitlines()]
        assert len(lines) == summary.rows == rows
        assert summary.ok == sum(map(is_answered, lines))
        assert all((line["response"] is None) != (line["error"] is None) for line in lines)


@settings(max_examples=150, deadline=None)
@given(FILES)
def test_any_bytes_as_json_lines(content: bytes):
    asyncio.run(answer(content, "in.jsonl"))


@settings(max_examples=60, deadline=None)
@given(FILES, st.sampled_from(["in.csv", "in.jsonl.gz", "in.jsonl.zst", "in.parquet", "in.csv.gz"]))
def test_any_bytes_under_any_name(content: bytes, name: str):
    asyncio.run(answer(content, name))


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.lists(ROWS, min_size=1, max_size=6), st.sampled_from(["completion", "chat"]))
def test_any_rows_under_a_template(rows: list[dict[str, Any]], prompt_as: str):
    content = "\n".join(json.dumps(row) for row in rows).encode()
    asyncio.run(answer(content, "in.jsonl", prompt_template="{{ prompt }}", prompt_as=prompt_as))


@settings(max_examples=500, deadline=None)
@given(LINES | ROWS.map(lambda row: json.dumps(row).encode()))
def test_any_line_is_a_request_or_an_error(line: bytes):
    found = Shape(BatchSpec("in", "out", "tiny", {"max_tokens": 1}), "tiny").parse(line, 0)
    assert isinstance(found, (Request, RowError))
    assert isinstance(found.custom_id, str)
