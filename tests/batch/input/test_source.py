"""The input's formats."""

import gzip
import json
import random
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


@pytest.mark.parametrize("rows", [1, 2000])
def test_zstd_that_ends_in_the_middle_is_refused(tmp_path: Path, output: str, rows: int):
    path = tmp_path / "in.jsonl.zst"
    content = random.Random(1).randbytes(rows * 50).hex().encode()
    lines = b"".join(b'{"prompt": "%s"}\n' % content[at : at + 100] for at in range(0, len(content), 100))
    packed = zstandard.compress(lines)
    path.write_bytes(packed[: len(packed) * 2 // 3])
    with pytest.raises(BatchInputError, match="cannot be decompressed: the file ends in the middle"):
        check_input(BatchSpec(str(path), output, ""))
    # Several frames, as appending makes them, one of them empty.
    path.write_bytes(packed + zstandard.compress(b"") + zstandard.compress(LINES))
    assert check_input(BatchSpec(str(path), output, "")) == rows + 50


async def test_a_tables_columns_are_not_request_fields_unless_asked(
    engine: FakeEngine, tmp_path: Path, output: str
):
    path = tmp_path / "cars.csv"
    path.write_text("model,seed,stop,n\nFord Fiesta,7,3,\nFiat Panda,8,4,2\n")
    options = {"prompt_template": "a {{ model }}", "columns_as_parameters": ["seed", "stop", "n"]}
    found = await run(engine, path, output, **options)
    assert [text_of(row) for row in found] == ["A FORD FIESTA", "A FIAT PANDA"]
    assert sorted(engine.bodies, key=lambda body: body["seed"]) == [
        {"prompt": "a Ford Fiesta", "model": "tiny", "seed": 7, "stop": "3"},
        {"prompt": "a Fiat Panda", "model": "tiny", "seed": 8, "stop": "4", "n": 2},
    ]


def test_a_column_asked_for_as_a_parameter_must_be_there(tmp_path: Path, output: str):
    (tmp_path / "in.csv").write_text("prompt,seed\nx,1\n")
    with pytest.raises(BatchInputError, match="no column max_tokens; it has prompt, seed"):
        check_input(
            BatchSpec(str(tmp_path / "in.csv"), output, "", columns_as_parameters=["seed", "max_tokens"])
        )


async def test_a_template_keeps_every_field_that_it_does_not_read(
    engine: FakeEngine, write_rows: Write, output: str
):
    fields = {"logprobs": 2, "tools": [{"type": "function"}], "stop": "3", "chat_template_kwargs": {"a": 1}}
    path = write_rows({"custom_id": "mine", "name": "Ann", **fields})
    await run(engine, path, output, prompt_template="hello {{ name }}", prompt_as="chat")
    messages = [{"role": "user", "content": "hello Ann"}]
    assert engine.bodies == [{"messages": messages, "model": "tiny", **fields}]


@pytest.mark.parametrize("ordering", ["input", "prefix"])
async def test_a_row_nested_too_deeply_is_an_error_row(
    engine: FakeEngine, write_rows: Write, output: str, ordering: str
):
    deep = '{"prompt": "x", "metadata_of_mine": ' + "[" * 600 + "]" * 600 + "}"
    rows = [{"prompt": "one"}, deep, {"prompt": "many [[[" * 10}]
    found = await run(engine, write_rows(*rows), output, ordering=ordering)
    assert codes(output) == [None, "invalid_row", None]
    assert "cannot be written as JSON" in found[1]["error"]["message"]


async def test_a_template_that_yields_no_text_is_an_error_row(
    engine: FakeEngine, write_rows: Write, output: str
):
    path = write_rows({"n": 65}, {"n": 0xD800})
    await run(engine, path, output, prompt_template="{{ '%c' % n }}")
    assert codes(output) == [None, "template_error"]


async def test_a_cell_of_parquet_that_is_not_utf_8_is_an_error_row(
    engine: FakeEngine, tmp_path: Path, output: str
):
    import pyarrow
    from pyarrow import parquet

    cells = pyarrow.array([b"one", b"\xff\xfe", b"three"]).view(pyarrow.string())
    path = tmp_path / "in.parquet"
    parquet.write_table(pyarrow.table({"prompt": cells, "custom_id": ["a", "b", "c"]}), path)
    found = await run(engine, path, output)
    assert [row["custom_id"] for row in found] == ["a", "b", "c"]
    assert codes(output) == [None, "invalid_row", None]
    assert "column prompt" in found[1]["error"]["message"]


async def test_a_csv_record_with_too_many_cells_is_an_error_row(
    engine: FakeEngine, tmp_path: Path, output: str
):
    path = tmp_path / "in.csv"
    path.write_text("custom_id,prompt\na,one\nb,two, and more\nc,three,,\n")
    found = await run(engine, path, output)
    assert codes(output) == [None, "invalid_row", None]
    assert found[1]["custom_id"] == "b"
    assert "line 3 has 3 cells, more than the 2 columns" in found[1]["error"]["message"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('prompt\none\n"two\nthree\nfour\n', "begins in line 3"),
        ('prompt,seed\n"one" more,1\n', "begins in line 2"),
        ("prompt,seed,prompt\na,1,b\n", "two columns prompt"),
    ],
)
def test_a_csv_that_would_be_misread_is_refused(tmp_path: Path, output: str, content: str, said: str):
    (tmp_path / "in.csv").write_text(content)
    with pytest.raises(BatchInputError, match=said):
        check_input(BatchSpec(str(tmp_path / "in.csv"), output, ""))


@pytest.mark.parametrize("count", [3, 250])
def test_a_batch_none_of_whose_first_rows_can_be_sent_is_refused(write_rows: Write, output: str, count: int):
    path = write_rows(*[{"name": f"n{row}"} for row in range(count)])
    which = "first 100" if count > 100 else "3"
    with pytest.raises(BatchInputError, match=f"None of the {which} rows .* row-1: .*nmae"):
        check_input(BatchSpec(path, output, "", prompt_template="hello {{ nmae }}"))
    assert not Path(output).parent.exists()


def test_one_row_that_can_be_sent_is_enough(write_rows: Write, output: str):
    rows = [{"nothing": row} for row in range(99)]
    assert check_input(BatchSpec(write_rows(*rows, {"prompt": "x"}), output, "")) == 100


def test_rows_that_share_a_custom_id_are_said(
    write_rows: Write, output: str, caplog: pytest.LogCaptureFixture
):
    rows = [{"custom_id": "a", "prompt": "1"}, {"custom_id": "a", "prompt": "2"}, {"prompt": "3"}]
    check_input(BatchSpec(write_rows(*rows, {"custom_id": "row-3", "prompt": "4"}), output, ""))
    assert "2 rows repeat the custom_id of an earlier row" in caplog.text
    caplog.clear()
    check_input(BatchSpec(write_rows(*rows[1:]), output, ""))
    assert not caplog.text


async def test_a_custom_id_beyond_64_bits_must_be_a_text(engine: FakeEngine, write_rows: Write, output: str):
    path = write_rows({"custom_id": str(2**70), "prompt": "x"}, {"custom_id": 2**70, "prompt": "x"})
    found = await run(engine, path, output)
    assert found[0]["custom_id"] == str(2**70)
    assert codes(output) == [None, "invalid_row"]
    assert "integer of 64 bits" in found[1]["error"]["message"]
