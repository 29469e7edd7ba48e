"""The input's rows: counted and proven readable once, then read by number in any order.

The scan notes where each row starts (8 bytes a row, in a file); reading a row is one ``pread`` of that file
and one of the input, so that memory does not grow with the batch. Input that is no plain local file is
copied to a local one while it is scanned.
"""

from __future__ import annotations

import codecs
import hashlib
import io
import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from airflow_arcadia.batch.records import MAX_LINE_BYTES
from airflow_arcadia.batch.segments import MAX_ROWS
from airflow_arcadia.batch.storage import is_local, resolve, sync
from airflow_arcadia.exceptions import BatchInputError

NOTHING_RUNS = "No row was sent."
_OFFSET_BYTES = 8
_BLOCK = 8192
"""Offsets written at once."""


@dataclass(frozen=True)
class Input:
    """Where the rows come from.

    :param local: its path when it is a plain local file, read in place.
    :param stamp: changes when the content does, and is cheap: size and time, or the store's tag.
    """

    uri: str
    fs: Any
    path: str
    local: Path | None
    stamp: str


@dataclass(frozen=True)
class Scan:
    """What one pass over the input found.

    :param digest: of the content, 32 hex digits.
    """

    rows: int
    digest: str


def locate(uri: str) -> Input:
    """Find the input. Raises :class:`BatchInputError` when it is missing, a folder, or empty."""
    fs, path = resolve(uri)
    try:
        info = fs.info(path)
    except FileNotFoundError as error:
        raise BatchInputError(
            f"The input {uri} does not exist.", what_to_do="Correct the path.", still_running=NOTHING_RUNS
        ) from error
    except OSError as error:
        raise BatchInputError(
            f"The input {uri} cannot be read: {error}.",
            what_to_do="Correct the path or the rights on it.",
            still_running=NOTHING_RUNS,
        ) from error
    if info.get("type") == "directory":
        raise BatchInputError(
            f"The input {uri} is a folder.", what_to_do="Name one file.", still_running=NOTHING_RUNS
        )
    if not info.get("size", 1):
        raise empty(uri)
    local = Path(path) if is_local(fs) else None
    return Input(uri, fs, path, local, _stamp(info, local))


def empty(uri: str) -> BatchInputError:
    """The error for an input without rows."""
    return BatchInputError(
        f"The input {uri} is empty: it has no rows.",
        what_to_do="Give it one row per line.",
        still_running=NOTHING_RUNS,
    )


def scan(source: Input, index: Path | None, spool: Path | None, limit: int | None) -> Scan:
    """Read the input once: every row must be UTF-8 (whether it can be sent is said row by row later).

    :param index: where to write the offsets; None only checks.
    :param spool: where to copy the rows to; None leaves them where they are.
    :param limit: stop after so many rows.

    Raises :class:`BatchInputError` for a line that is not UTF-8, and for no rows at all.
    """
    digest = hashlib.blake2b(digest_size=16)
    rows = 0
    with _Writer(index) as offsets, _Writer(spool) as copy, source.fs.open(source.path, "rb") as file:
        position = 0
        number = 0
        goes_on = False
        for piece in _pieces(file):
            starts = 3 if not position and piece.startswith(codecs.BOM_UTF8) else 0
            content = piece[starts:].strip()
            number += not goes_on
            if content and not goes_on:
                if rows == limit:
                    break
                if len(content) <= MAX_LINE_BYTES:
                    _check_text(content, number, source.uri)
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
            still_running=NOTHING_RUNS,
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


def _stamp(info: dict[str, Any], local: Path | None) -> str:
    if local is not None:
        stat = local.stat()
        return f"{stat.st_size}-{stat.st_mtime_ns}-{stat.st_ino}"
    tags = [
        info.get(key) for key in ("size", "ETag", "etag", "LastModified", "mtime", "created", "generation")
    ]
    return "-".join(str(tag) for tag in tags if tag is not None)


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    """Lines with their ends; a line that is too long to be a row comes in several pieces."""
    reader = io.BufferedReader(_Raw(file), 1 << 20)
    while piece := reader.readline(MAX_LINE_BYTES + 2):
        yield piece


def _check_text(line: bytes, number: int, uri: str) -> None:
    try:
        orjson.loads(line)
    except orjson.JSONDecodeError:
        # Only a line that fails can have another encoding; that it is no JSON is the row's own error.
        try:
            line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise BatchInputError(
                f"Line {number} of {uri} is not UTF-8 (byte {error.start + 1} of the line).",
                what_to_do="Write the input as UTF-8.",
                still_running=NOTHING_RUNS,
            ) from error


class _Raw(io.RawIOBase):
    """fsspec's files as raw ones, so that one buffered reader serves all of them."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


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
