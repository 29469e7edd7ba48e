"""Index the rows of the input in one pass, then read them by number in any order.

The scan notes where each row starts and a checksum of it (12 bytes a row, in a file); reading a row is one
``pread`` of that file and one of the input, so that memory does not grow with the batch. Input that is not a
plain local file is copied to a local one while it is scanned.
"""

from __future__ import annotations

import codecs
import hashlib
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from airflow_arcadia.batch.input.custom_ids import CustomIds
from airflow_arcadia.batch.input.row_parser import Shape
from airflow_arcadia.batch.input.source import Input, check_columns, empty, input_changed, opened, read_object
from airflow_arcadia.batch.openai_format import MAX_LINE_BYTES, BadRow, RowError, custom_id_of
from airflow_arcadia.batch.spec import MAX_ROWS, NO_ROW_SENT, BatchSpec
from airflow_arcadia.batch.storage import sync
from airflow_arcadia.exceptions import BatchInputError

_ENTRY = struct.Struct("<QI")
"""Where a row starts, CRC-32 of it without the white space around it. The last entry is the end."""
_FIRST_ROWS = 100
"""Rows that are made into requests by the scan: an input none of whose first rows can be sent is refused."""


@dataclass(frozen=True)
class Scan:
    """What one pass over the input found.

    :param digest: of the content, 32 hex digits.
    :param duplicate_ids: rows whose ``custom_id`` a row before them has.
    """

    rows: int
    digest: str
    duplicate_ids: int


def scan(source: Input, index: Path | None, copy: Path | None, spec: BatchSpec) -> Scan:
    """Read the input once: every row must be UTF-8 (whether it can be sent is decided row by row later).

    :param index: where to write the index; None only checks.
    :param copy: where to copy the rows to; None leaves them where they are.

    Raises :class:`BatchInputError` for a line that is not UTF-8, a table that cannot be read or lacks a
    column, for no rows at all, and when none of the first rows can be sent.
    """
    digest = hashlib.blake2b(digest_size=16)
    checks = _Checks(source, spec)
    with _Writer(index) as entries, _Writer(copy) as copied, opened(source, spec) as pieces:
        position = 0
        number = 0
        goes_on = False
        for piece in pieces:
            starts = 3 if not position and piece.startswith(codecs.BOM_UTF8) else 0
            content = piece[starts:].strip()
            number += not goes_on
            if content and not goes_on:
                if checks.rows == spec.limit:
                    break
                checks.take(content, number)
                entries.write(_ENTRY.pack(position + starts, zlib.crc32(content)))
            goes_on = not piece.endswith(b"\n")
            digest.update(piece)
            copied.write(piece)
            position += len(piece)
        entries.write(_ENTRY.pack(position, 0))
    checks.end()
    return Scan(checks.rows, digest.hexdigest(), checks.ids.duplicates())


class _Checks:
    """What is checked of the rows while they are read once."""

    def __init__(self, source: Input, spec: BatchSpec) -> None:
        self.rows = 0
        self.ids = CustomIds()
        self._source, self._spec = source, spec
        self._shape = Shape(spec, spec.model)
        self._columns_known = False
        self._first_error: RowError | None = None
        self._sendable = False

    def take(self, content: bytes, number: int) -> None:
        """Check the next row, in line ``number`` of the input."""
        found = read_object(content, number, self._source.uri) if len(content) <= MAX_LINE_BYTES else None
        if not self._columns_known:
            self._columns_known = check_columns(content, self._spec)
        if not self._sendable and self.rows < _FIRST_ROWS:
            request = self._shape.parse(content, self.rows)
            if isinstance(request, RowError):
                self._first_error = self._first_error or request
            else:
                self._sendable = True
        self.rows += 1
        if self.rows == _FIRST_ROWS:
            self._refuse_if_none_can_be_sent()
        self.ids.add(_custom_id(found, f"row-{self.rows}"))

    def end(self) -> None:
        """Check what only the number of rows tells."""
        if not self.rows:
            raise empty(self._source.uri)
        if self.rows > MAX_ROWS:
            raise BatchInputError(
                f"The input has {self.rows} rows; {MAX_ROWS} are possible.",
                what_to_do="Split the input.",
                still_running=NO_ROW_SENT,
            )
        self._refuse_if_none_can_be_sent()

    def _refuse_if_none_can_be_sent(self) -> None:
        if self._sendable or self._first_error is None:
            return
        error = self._first_error
        which = f"first {_FIRST_ROWS}" if self.rows >= _FIRST_ROWS else f"{self.rows}"
        raise BatchInputError(
            f"None of the {which} rows of {self._source.uri} can be sent; the first, {error.custom_id}: "
            f"{error.message}",
            what_to_do="Correct the rows, prompt_column or prompt_template.",
            still_running=NO_ROW_SENT,
        )


class Rows:
    """Reads rows by number.

    :param path: the input, or its local copy.
    :param index: the file that :func:`scan` wrote.
    """

    def __init__(self, path: Path, index: Path) -> None:
        self._path = path
        self._file = os.open(path, os.O_RDONLY)
        try:
            self._index = os.open(index, os.O_RDONLY)
        except OSError:
            os.close(self._file)
            raise

    def read(self, row: int) -> bytes:
        """The row's line, without the white space around it.

        Raises :class:`~airflow_arcadia.batch.input.source.InputChanged` when it is not the line that was
        scanned.
        """
        entries = os.pread(self._index, 2 * _ENTRY.size, row * _ENTRY.size)
        start, checksum = _ENTRY.unpack_from(entries)
        end, _ = _ENTRY.unpack_from(entries, _ENTRY.size)
        # A row beyond the longest allowed is cut just above it: it is refused for its length.
        line = os.pread(self._file, min(end - start, MAX_LINE_BYTES + 1), start).strip()
        if len(line) <= MAX_LINE_BYTES and zlib.crc32(line) != checksum:
            raise input_changed(str(self._path))
        return line

    def size(self, row: int) -> int:
        """Bytes of the row's line."""
        entries = os.pread(self._index, 2 * _ENTRY.size, row * _ENTRY.size)
        (start, _), (end, _) = _ENTRY.iter_unpack(entries)
        return int(min(end - start, MAX_LINE_BYTES + 1))

    def close(self) -> None:
        """Close both files."""
        os.close(self._file)
        os.close(self._index)


def row_count(index: Path) -> int:
    """How many rows an index has; -1 when it is missing or torn."""
    try:
        size = index.stat().st_size
    except FileNotFoundError:
        return -1
    return -1 if size % _ENTRY.size else size // _ENTRY.size - 1


def custom_id(line: bytes, default: str) -> str:
    """The ``custom_id`` of a row's line; the default where it has none, or cannot be read."""
    try:
        return _custom_id(orjson.loads(line), default)
    except orjson.JSONDecodeError:
        return default


def _custom_id(row: Any, default: str) -> str:
    try:
        return custom_id_of(row, default) if isinstance(row, dict) else default
    except BadRow:
        return default


class _Writer:
    """A file that is fsynced when all went well; nothing at all without a path."""

    def __init__(self, path: Path | None) -> None:
        self._file = path.open("wb", buffering=1 << 20) if path is not None else None

    def __enter__(self) -> _Writer:
        return self

    def write(self, data: bytes) -> None:
        if self._file is not None:
            self._file.write(data)

    def __exit__(self, kind: object, *_: object) -> None:
        if self._file is None:
            return
        if kind is None:
            sync(self._file)
        self._file.close()
