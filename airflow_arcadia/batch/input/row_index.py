"""The input's rows: counted and proven readable once, then read by number in any order.

The scan notes where each row starts (8 bytes a row, in a file); reading a row is one ``pread`` of that file
and one of the input, so that memory does not grow with the batch. Input that is no plain local file is
copied to a local one while it is scanned.
"""

from __future__ import annotations

import codecs
import hashlib
import os
from array import array
from dataclasses import dataclass
from pathlib import Path

from airflow_arcadia.batch.input.source import Input, check_columns, check_text, empty, opened
from airflow_arcadia.batch.openai_format import MAX_LINE_BYTES
from airflow_arcadia.batch.spec import MAX_ROWS, NO_ROW_SENT, BatchSpec
from airflow_arcadia.batch.storage import sync
from airflow_arcadia.exceptions import BatchInputError

_OFFSET_BYTES = 8
_BLOCK = 8192
"""Offsets written at once."""


@dataclass(frozen=True)
class Scan:
    """What one pass over the input found.

    :param digest: of the content, 32 hex digits.
    """

    rows: int
    digest: str


def scan(source: Input, index: Path | None, spool: Path | None, spec: BatchSpec) -> Scan:
    """Read the input once: every row must be UTF-8 (whether it can be sent is said row by row later).

    :param index: where to write the offsets; None only checks.
    :param spool: where to copy the rows to; None leaves them where they are.

    Raises :class:`BatchInputError` for a line that is not UTF-8, a table that is none or lacks its prompt's
    column, and for no rows at all.
    """
    digest = hashlib.blake2b(digest_size=16)
    rows = 0
    limit = spec.limit
    with _Writer(index) as offsets, _Writer(spool) as copy, opened(source, spec) as pieces:
        position = 0
        number = 0
        goes_on = False
        for piece in pieces:
            starts = 3 if not position and piece.startswith(codecs.BOM_UTF8) else 0
            content = piece[starts:].strip()
            number += not goes_on
            if content and not goes_on:
                if rows == limit:
                    break
                if not rows:
                    check_columns(content, spec)
                if len(content) <= MAX_LINE_BYTES:
                    check_text(content, number, source.uri)
                offsets.offset(position + starts)
                rows += 1
            goes_on = not piece.endswith(b"\n")
            digest.update(piece)
            copy.write(piece)
            position += len(piece)
        offsets.offset(position)
    if not rows:
        raise empty(source.uri)
    if rows > MAX_ROWS:
        raise BatchInputError(
            f"The input has {rows} rows; {MAX_ROWS} are possible.",
            what_to_do="Split the input.",
            still_running=NO_ROW_SENT,
        )
    return Scan(rows, digest.hexdigest())


class Rows:
    """Reads rows by number.

    :param path: the input, or its local copy.
    :param index: the offsets that :func:`scan` wrote.
    """

    def __init__(self, path: Path, index: Path) -> None:
        self._file = os.open(path, os.O_RDONLY)
        try:
            self._index = os.open(index, os.O_RDONLY)
        except OSError:
            os.close(self._file)
            raise

    def read(self, row: int) -> bytes:
        """The row's line, without the white space around it."""
        bounds = os.pread(self._index, 2 * _OFFSET_BYTES, row * _OFFSET_BYTES)
        start = int.from_bytes(bounds[:_OFFSET_BYTES], "little")
        end = int.from_bytes(bounds[_OFFSET_BYTES:], "little")
        # A row beyond the longest allowed is cut just above it: it is refused for its length.
        line = os.pread(self._file, min(end - start, MAX_LINE_BYTES + 1), start)
        return line.strip()

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
    return -1 if size % _OFFSET_BYTES else size // _OFFSET_BYTES - 1


class _Writer:
    """A file that is fsynced when all went well; nothing at all without a path."""

    def __init__(self, path: Path | None) -> None:
        self._file = path.open("wb", buffering=1 << 20) if path is not None else None
        self._block = array("Q")

    def __enter__(self) -> _Writer:
        return self

    def write(self, data: bytes) -> None:
        if self._file is not None:
            self._file.write(data)

    def offset(self, position: int) -> None:
        if self._file is not None:
            self._block.append(position)
            if len(self._block) >= _BLOCK:
                self._file.write(self._block.tobytes())
                del self._block[:]

    def __exit__(self, kind: object, *_: object) -> None:
        if self._file is None:
            return
        if kind is None:
            self._file.write(self._block.tobytes())
            sync(self._file)
        self._file.close()
