"""Rows out of CSV and Parquet, as lines of JSON Lines: one object per row, column → value.

A record that cannot be read as it stands becomes a line with a list instead of an object: code, message and,
where known, the ``custom_id`` of its error row.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator
from typing import Any, BinaryIO

import orjson

from airflow_arcadia.batch.openai_format import MAX_LINE_BYTES
from airflow_arcadia.batch.spec import NO_ROW_SENT
from airflow_arcadia.exceptions import BatchInputError

_PARQUET_ROWS = 1024
"""Rows decoded at once: bounds memory."""


def csv_lines(file: BinaryIO, uri: str) -> Iterator[bytes]:
    """One line per record; the first record names the columns.

    Raises :class:`BatchInputError` naming the line for what is not UTF-8 or not CSV.
    """
    # A cell is a prompt: Python's own limit of 128 KiB is too low.
    csv.field_size_limit(MAX_LINE_BYTES)
    # Strict: an unclosed quote would silently make one record of all that follow.
    reader = csv.reader(io.TextIOWrapper(file, "utf-8-sig", newline=""), strict=True)
    began = 0
    try:
        header = next(reader, [])
        _check_header(header, uri)
        while True:
            began = reader.line_num + 1
            cells = next(reader, None)
            if cells is None:
                return
            if cells:
                yield _csv_line(header, cells, began) + b"\n"
    except UnicodeDecodeError as error:
        # The decoder reads ahead of the records.
        what = f"{uri} is not UTF-8 (line {reader.line_num + 1} or soon after)"
        raise _refused(what, "Write it as UTF-8.") from error
    except csv.Error as error:
        what = f"{uri} is not valid CSV in the record that begins in line {max(1, began)}: {error}"
        raise _refused(what, "Correct the record; a quote in it may not be closed.") from error


def parquet_lines(file: BinaryIO, uri: str) -> Iterator[bytes]:
    """One line per row. Raises :class:`BatchInputError` for a file that is not Parquet."""
    try:
        import pyarrow  # noqa: PLC0415 - only who reads Parquet needs it
        from pyarrow import parquet  # noqa: PLC0415
    except ImportError as error:
        raise _refused(f"{uri} is Parquet, and pyarrow is not installed", "Install pyarrow.") from error
    try:
        for batch in parquet.ParquetFile(file).iter_batches(batch_size=_PARQUET_ROWS):
            for line in _parquet_batch(batch):
                yield line + b"\n"
    except (pyarrow.ArrowException, OSError) as error:
        raise _refused(f"{uri} cannot be read as Parquet: {error}", "Correct the file.") from error


def columns(line: bytes) -> set[str] | None:
    """Names of the columns of a line; None for a record that could not be read."""
    record = orjson.loads(line)
    return set(record) if isinstance(record, dict) else None


def _check_header(header: list[str], uri: str) -> None:
    twice = [name for name, count in Counter(header).items() if name and count > 1]
    if twice:
        raise _refused(f"{uri} has two columns {twice[0]}", "Give each column a name of its own.")


def _csv_line(header: list[str], cells: list[str], line: int) -> bytes:
    record = {name: cell for name, cell in zip(header, cells, strict=False) if name}
    if any(cells[len(header) :]):
        what = f"The record in line {line} has {len(cells)} cells, more than the {len(header)} columns."
        return orjson.dumps(["invalid_row", what, record.get("custom_id") or None])
    return orjson.dumps(record)


def _parquet_batch(batch: Any) -> Iterator[bytes]:
    try:
        records = batch.to_pylist()
    except (ValueError, OverflowError):
        # A cell that cannot be decoded: find out whose, so that the others are answered.
        records = (_parquet_row(batch, row) for row in range(batch.num_rows))
    for record in records:
        yield orjson.dumps(record, default=_as_text, option=orjson.OPT_NON_STR_KEYS)


def _parquet_row(batch: Any, row: int) -> dict[str, Any] | list[str | None]:
    record: dict[str, Any] = {}
    wrong = None
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            record[name] = column.slice(row, 1).to_pylist()[0]
        except (ValueError, OverflowError) as error:
            wrong = wrong or f"The cell in column {name} cannot be read: {error}."
    if wrong is None:
        return record
    custom_id = record.get("custom_id")
    return ["invalid_row", wrong, None if custom_id is None else str(custom_id)]


def _as_text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _refused(what: str, what_to_do: str) -> BatchInputError:
    return BatchInputError(f"The input {what}.", what_to_do=what_to_do, still_running=NO_ROW_SENT)
