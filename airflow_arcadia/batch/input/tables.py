"""Rows out of CSV and Parquet, as lines of JSON Lines: one object per row, column → value."""

from __future__ import annotations

import csv
import io
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

    Raises :class:`BatchInputError` naming the line for what is not UTF-8 or no CSV.
    """
    # A cell is a prompt: Python's own limit of 128 KiB is too low.
    csv.field_size_limit(MAX_LINE_BYTES)
    reader = csv.DictReader(io.TextIOWrapper(file, "utf-8-sig", newline=""), restkey="")
    try:
        for record in reader:
            record.pop("", None)
            yield orjson.dumps({key: value for key, value in record.items() if value is not None}) + b"\n"
    except UnicodeDecodeError as error:
        # The decoder reads ahead of the records.
        what = f"{uri} is not UTF-8 (line {reader.line_num + 1} or soon after)"
        raise _refused(what, "Write it as UTF-8.") from error
    except csv.Error as error:
        what = f"{uri} is no CSV in line {reader.line_num + 1}: {error}"
        raise _refused(what, "Correct the line.") from error


def parquet_lines(file: BinaryIO, uri: str) -> Iterator[bytes]:
    """One line per row. Raises :class:`BatchInputError` for a file that is no Parquet."""
    try:
        import pyarrow  # noqa: PLC0415 - only who reads Parquet needs it
        from pyarrow import parquet  # noqa: PLC0415
    except ImportError as error:
        raise _refused(f"{uri} is Parquet, and pyarrow is not installed", "Install pyarrow.") from error
    try:
        for batch in parquet.ParquetFile(file).iter_batches(batch_size=_PARQUET_ROWS):
            for record in batch.to_pylist():
                yield orjson.dumps(record, default=_as_text, option=orjson.OPT_NON_STR_KEYS) + b"\n"
    except (pyarrow.ArrowException, OSError) as error:
        raise _refused(f"{uri} cannot be read as Parquet: {error}", "Correct the file.") from error


def columns(line: bytes) -> set[str]:
    """Names of the columns of a line that :func:`csv_lines` or :func:`parquet_lines` gave."""
    return set(orjson.loads(line))


def _as_text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _refused(what: str, what_to_do: str) -> BatchInputError:
    return BatchInputError(f"The input {what}.", what_to_do=what_to_do, still_running=NO_ROW_SENT)
