"""The input's formats."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from airflow_arcadia.batch import BatchSpec, Endpoint, check_input, run_batch_async
from airflow_arcadia.exceptions import BatchInputError
from tests.batch.fake_engine import FakeEngine
from tests.batch.reading import answers, codes, text_of

Write = Callable[..., str]
LINES = b"".join(json.dumps({"prompt": f"row {row}"}).encode() + b"\n" for row in range(50))


async def run(engine: FakeEngine, path: Path | str, output: str, **options: Any) -> list[dict[str, Any]]:
    await run_batch_async(BatchSpec(str(path), output, "tiny", **options), [Endpoint(engine.url)])
    return answers(output)


@pytest.mark.parametrize(("end", "pack"), [(".gz", gzip.compress), (".zst", zstandard.compress)])
async def test_compressed_lines(
    engine: FakeEngine, tmp_path: Path, output: str, end: str, pack: Callable[[bytes], bytes]
):
    path = tmp_path / f"in.jsonl{end}"
    path.write_bytes(pack(LINES))
    assert check_input(BatchSpec(str(path), output, "")) == 50
    assert [text_of(row) for row in await run(engine, path, output)] == [f"ROW {row}" for row in range(50)]


@pytest.mark.parametrize(("end", "pack"), [(".gz", gzip.compress), (".zst", zstandard.compress)])
def test_compressed_lines_that_are_cut_off(
    tmp_path: Path, output: str, end: str, pack: Callable[[bytes], bytes]
):
    path = tmp_path / f"in.jsonl{end}"
    path.write_bytes(b"x" * 100 + pack(LINES))
    with pytest.raises(BatchInputError, match="cannot be decompressed"):
        check_input(BatchSpec(str(path), output, ""))


async def test_a_csv_has_a_prompt_column(engine: FakeEngine, tmp_path: Path, output: str):
    path = tmp_path / "in.csv"
    path.write_text(
        'custom_id,prompt,max_tokens,topic\na,"one, ""quoted""",5,x\nb,"two\nlines",,x\n,three,7,x\nd,,,\n',
        encoding="utf-8-sig",
    )
    found = await run(
        engine, path, output, parameters={"max_tokens": 9}, columns_as_parameters=["max_tokens"]
    )
    assert [row["custom_id"] for row in found] == ["a", "b", "row-3", "d"]
    assert codes(output) == [None, None, None, "no_prompt"]
    assert [text_of(row) for row in found[:3]] == ['ONE, "QUOTED"', "TWO\nLINES", "THREE"]
    bodies = {body["prompt"]: body for body in engine.bodies}
    assert bodies["three"] == {"prompt": "three", "max_tokens": 7, "model": "tiny"}
    assert bodies["two\nlines"]["max_tokens"] == 9


async def test_a_template_makes_the_prompt_out_of_columns(engine: FakeEngine, tmp_path: Path, output: str):
    path = tmp_path / "in.csv.gz"
    path.write_bytes(gzip.compress(b"city,lang\nParis,French\nRome,Italian\n"))
    found = await run(engine, path, output, prompt_template="{{ lang }} for {{ city }}", prompt_as="chat")
    assert [text_of(row) for row in found] == ["FRENCH FOR PARIS", "ITALIAN FOR ROME"]
    assert engine.bodies[0]["messages"][0]["role"] == "user"


async def test_a_template_fails_row_by_row(engine: FakeEngine, write_rows: Write, output: str):
    path = write_rows({"name": "Ann"}, {"other": 1}, {"name": None})
    found = await run(engine, path, output, prompt_template="hello {{ name }}")
    assert codes(output) == [None, "template_error", None]
    assert text_of(found[0]) == "HELLO ANN"


def test_a_template_cannot_reach_the_machine(write_rows: Write, output: str):
    from airflow_arcadia.batch.input.row_parser import Shape
    from airflow_arcadia.batch.openai_format import RowError

    template = "{{ name.__class__.__mro__[1].__subclasses__() }}"
    found = Shape(BatchSpec("in", "out", "m", prompt_template=template), "m").parse(b'{"name": "x"}', 0)
    assert isinstance(found, RowError)


def test_a_template_that_is_none(write_rows: Write, output: str):
    with pytest.raises(BatchInputError, match="not a valid Jinja template"):
        check_input(BatchSpec(write_rows({"a": 1}), output, "", prompt_template="{{ a"))


async def test_a_key_can_hold_the_prompt_of_json_lines(engine: FakeEngine, write_rows: Write, output: str):
    path = write_rows({"question": "one", "id": 7}, {"answer": "two"})
    found = await run(engine, path, output, prompt_column="question")
    assert codes(output) == [None, "no_prompt"]
    assert text_of(found[0]) == "ONE"


async def test_a_prompt_can_be_sent_as_a_users_message(engine: FakeEngine, write_rows: Write, output: str):
    path = write_rows({"prompt": "one", "seed": 1}, {"messages": [{"role": "user", "content": "two"}]})
    found = await run(engine, path, output, prompt_as="chat")
    assert [text_of(row) for row in found] == ["ONE", "TWO"]
    assert {"messages", "seed", "model"} in [set(body) for body in engine.bodies]


async def test_parquet_has_a_prompt_column_or_messages(engine: FakeEngine, tmp_path: Path, output: str):
    import pyarrow
    from pyarrow import parquet

    path = tmp_path / "in.parquet"
    messages = [[{"role": "user", "content": f"row {row}"}] for row in range(3000)]
    parquet.write_table(pyarrow.table({"messages": messages, "seed": list(range(3000))}), path)
    found = await run(engine, path, output, columns_as_parameters=["seed"])
    assert [text_of(row) for row in found] == [f"ROW {row}" for row in range(3000)]
    assert sorted(body["seed"] for body in engine.bodies) == list(range(3000))


def test_a_table_without_its_prompts_column(tmp_path: Path, output: str):
    (tmp_path / "in.csv").write_text("question,id\nx,1\n")
    with pytest.raises(BatchInputError, match="no column input or messages or prompt; it has id, question"):
        check_input(BatchSpec(str(tmp_path / "in.csv"), output, ""))
    with pytest.raises(BatchInputError, match="no column Question"):
        check_input(BatchSpec(str(tmp_path / "in.csv"), output, "", prompt_column="Question"))


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("in.csv", b"prompt\ncaf\xe9\n", "not UTF-8"),
        ("in.csv", b"prompt\n", "is empty"),
        ("in.parquet", b"PAR1 nothing", "cannot be read as Parquet"),
    ],
)
def test_tables_that_are_none(tmp_path: Path, output: str, name: str, content: bytes, match: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BatchInputError, match=match):
        check_input(BatchSpec(str(tmp_path / name), output, ""))
