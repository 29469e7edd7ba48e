"""Bad input is met before anything starts."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from airflow_arcadia.batch import BatchSpec, Endpoint, check_input, run_batch
from airflow_arcadia.exceptions import ArcadiaConfigError, BatchInputError

Write = Callable[..., str]
NOBODY = [Endpoint("http://127.0.0.1:9")]


def refused(spec: BatchSpec, match: str) -> None:
    """Both by the check beforehand and by the run itself; and neither leaves anything."""
    with pytest.raises(BatchInputError, match=match):
        check_input(spec)
    with pytest.raises(BatchInputError, match=match):
        run_batch(spec, NOBODY)
    assert not list(Path(spec.output).parent.glob(".*.parts"))


def test_rows_are_counted_without_an_engine_and_nothing_is_written(write_rows: Write, output: str):
    assert check_input(BatchSpec(write_rows({"prompt": "x"}, "", "{", "  "), output, "")) == 2
    assert not Path(output).parent.exists()


def test_input_that_is_missing(tmp_path: Path, output: str):
    refused(BatchSpec(str(tmp_path / "none.jsonl"), output, "m"), r"none.jsonl does not exist")


def test_input_that_is_a_folder(tmp_path: Path, output: str):
    refused(BatchSpec(str(tmp_path), output, "m"), "is a folder")


@pytest.mark.parametrize("content", [b"", b"\n \n\n", b"\xef\xbb\xbf"])
def test_input_that_is_empty(tmp_path: Path, output: str, content: bytes):
    (tmp_path / "in.jsonl").write_bytes(content)
    refused(BatchSpec(str(tmp_path / "in.jsonl"), output, "m"), "is empty")


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b'{"prompt": "x"}\n\n{"prompt": "caf\xe9"}\n', 3),
        ('{"prompt": "x"}\n'.encode("utf-16"), 1),
        (b"\x80", 1),
    ],
)
def test_input_that_is_not_utf_8_names_the_line(tmp_path: Path, output: str, content: bytes, line: int):
    (tmp_path / "in.jsonl").write_bytes(content)
    refused(BatchSpec(str(tmp_path / "in.jsonl"), output, "m"), f"Line {line} of .* is not UTF-8")


def test_input_over_an_unknown_protocol(output: str):
    refused(BatchSpec("nosuch://bucket/in.jsonl", output, "m"), "cannot be opened")


def test_an_output_that_exists_is_not_overwritten(write_rows: Write, output: str):
    Path(output).parent.mkdir()
    Path(output).write_text("mine")
    refused(BatchSpec(write_rows({"prompt": "x"}), output, "m"), "exists and is not this batch's")
    assert Path(output).read_text() == "mine"


def test_an_output_that_is_a_folder(write_rows: Write, tmp_path: Path):
    refused(BatchSpec(write_rows({"prompt": "x"}), str(tmp_path), "m"), "is a folder")


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_an_output_folder_without_rights(write_rows: Write, tmp_path: Path):
    (tmp_path / "closed").mkdir(mode=0o500)
    refused(
        BatchSpec(write_rows({"prompt": "x"}), str(tmp_path / "closed/o.jsonl"), "m"), "cannot be written"
    )


def test_an_output_below_a_file(write_rows: Write, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BatchInputError, match="cannot be written"):
        check_input(BatchSpec(write_rows({"prompt": "x"}), str(tmp_path / "file/out.jsonl"), "m"))


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path: Path, output: str):
    (tmp_path / "in.jsonl").write_bytes(b'\xef\xbb\xbf{"prompt": "x"}')
    assert check_input(BatchSpec(str(tmp_path / "in.jsonl"), output, "m")) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"max_in_flight": 0},
        {"max_attempts": 0},
        {"max_failed_fraction": 1.5},
        {"max_failed_rows": -1},
        {"on_change": "ignore"},
        {"retry_base_s": -1},
        {"limit": 0},
    ],
)
def test_options_that_cannot_work(options: dict[str, object]):
    with pytest.raises(ArcadiaConfigError, match=next(iter(options))):
        BatchSpec("in", "out", "m", **options)  # type: ignore[arg-type]
