"""Locate the input, tell its format, and read it as lines."""

from __future__ import annotations

import contextlib
import gzip
import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import fsspec.compression
import orjson
import zstandard

from airflow_arcadia.batch.input.tables import columns, csv_lines, parquet_lines
from airflow_arcadia.batch.input.zstd import ZstdReader
from airflow_arcadia.batch.openai_format import MAX_LINE_BYTES
from airflow_arcadia.batch.spec import NO_ROW_SENT, BatchSpec
from airflow_arcadia.batch.storage import explained, is_local, resolve, shown
from airflow_arcadia.exceptions import BatchError, BatchInputError

_FORMATS = {".csv": "csv", ".parquet": "parquet", ".pq": "parquet"}
_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
_STAMPS = (
    *("size", "ETag", "etag", "generation", "md5Hash"),
    *("LastModified", "last_modified", "mtime", "modify", "updated", "time", "created"),
)
"""What file systems tell of a file that changes with its content."""
READY_CONTENT = ("messages", "input")
"""Columns that Parquet can hold as they are sent."""
_BROKEN = (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError)


class QuotesInputError(BatchInputError):
    """An error whose message quotes the input: not for whoever may not read it."""


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


def format_of(spec: BatchSpec) -> tuple[str, str | None]:
    """The input's format, and what it is compressed with."""
    name = spec.input.lower()
    compression = next((kind for end, kind in _COMPRESSIONS.items() if name.endswith(end)), None)
    stem = name.rpartition(".")[0] if compression else name
    by_name = next((kind for end, kind in _FORMATS.items() if stem.endswith(end)), "jsonl")
    return spec.input_format or by_name, compression


def is_table(spec: BatchSpec) -> bool:
    """Whether the input's rows are records with columns."""
    return format_of(spec)[0] != "jsonl"


class InputChanged(BatchInputError):
    """The input changed after it was scanned. Another attempt scans it again."""

    retryable = True


def locate(spec: BatchSpec) -> Input:
    """Find the input. Raises :class:`BatchInputError` when it is missing, a folder, or empty."""
    fs, path = resolve(spec.input, spec.storage)
    uri = shown(spec.input)
    # What a listing said before may be out of date.
    fs.invalidate_cache()
    try:
        info = fs.info(path)
    except FileNotFoundError as error:
        # fsspec's HTTP file system raises this for a server that is down, too.
        if error.__cause__ is not None and getattr(error.__cause__, "status", 503) >= 500:
            raise BatchError(
                f"The input {uri} cannot be reached: {error.__cause__}.",
                what_to_do="Check its server and the network; another attempt may succeed.",
                still_running=NO_ROW_SENT,
            ) from error
        raise BatchInputError(
            f"The input {uri} does not exist.", what_to_do="Correct the path.", still_running=NO_ROW_SENT
        ) from error
    if info.get("type") == "directory":
        raise BatchInputError(
            f"The input {uri} is a folder.", what_to_do="Name one file.", still_running=NO_ROW_SENT
        )
    # A server need not tell the size: whether there are rows is known after reading.
    if info.get("size") == 0:
        raise empty(uri)
    file = Path(path) if is_local(fs) else None
    in_place = file if format_of(spec) == ("jsonl", None) else None
    return Input(uri, fs, path, in_place, _stamp(info, file))


def check_unchanged(source: Input) -> None:
    """Raise :class:`InputChanged` unless an input that is read in place is as it was located."""
    if source.local is None:
        return
    try:
        stamp = _stamp({}, source.local)
    except FileNotFoundError:
        stamp = ""
    # Without the inode: some network file systems number a file anew while it is open.
    if stamp.rpartition("-")[0] != source.stamp.rpartition("-")[0]:
        raise input_changed(source.uri)


def input_changed(uri: str) -> InputChanged:
    """The error for rows that differ from what was scanned."""
    return InputChanged(
        f"The input {uri} changed while its rows were answered.",
        what_to_do="Run the batch again: it resumes if the content is the same as before, else it needs "
        "on_change='restart'. Write new input under a temporary name and rename it.",
        still_running="Rows committed before the change are kept.",
    )


def empty(uri: str) -> BatchInputError:
    """The error for an input without rows."""
    return BatchInputError(
        f"The input {uri} is empty: it has no rows.",
        what_to_do="Give it one row per line.",
        still_running=NO_ROW_SENT,
    )


@contextlib.contextmanager
def opened(source: Input, spec: BatchSpec) -> Iterator[Iterator[bytes]]:
    """The input's lines with their ends, as JSON Lines whatever its format; a line too long to be a row
    comes in several pieces. Raises :class:`BatchInputError` for what cannot be decompressed or read as its
    format.
    """
    kind, compression = format_of(spec)
    with explained(f"The input {source.uri}", NO_ROW_SENT):
        file = _bytes(source, compression)
    with file:
        if kind == "csv":
            lines = csv_lines(file, source.uri)
        elif kind == "parquet":
            lines = parquet_lines(file, source.uri)
        else:
            lines = _pieces(file)
        yield _readable(lines, source.uri)


def _readable(lines: Iterator[bytes], uri: str) -> Iterator[bytes]:
    with explained(f"The input {uri}", NO_ROW_SENT):
        try:
            yield from lines
        except _BROKEN as error:
            raise BatchInputError(
                f"The input {uri} cannot be decompressed: {error}.",
                what_to_do="Write it again.",
                still_running=NO_ROW_SENT,
            ) from error


def _bytes(source: Input, compression: str | None) -> Any:
    file = source.fs.open(source.path, "rb")
    if compression == "zstd":
        return io.BufferedReader(ZstdReader(file), 1 << 18)
    return fsspec.compression.compr[compression](file, mode="rb") if compression else file


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    reader = io.BufferedReader(_Raw(file), 1 << 20)
    while piece := reader.readline(MAX_LINE_BYTES + 2):
        yield piece


def check_columns(line: bytes, spec: BatchSpec) -> bool:
    """Raise :class:`BatchInputError` unless a row of a table has what becomes the prompt.

    :return: whether the line could tell.
    """
    if not is_table(spec):
        return True
    names = columns(line)
    if names is None:
        return False
    wanted = {spec.prompt_column} if spec.prompt_column else {"prompt", *READY_CONTENT}
    if spec.prompt_template is None and not wanted & names:
        missing, what_to_do = wanted, "Set prompt_column or prompt_template."
    else:
        missing, what_to_do = set(spec.columns_as_parameters) - names, "Correct columns_as_parameters."
    if missing:
        raise QuotesInputError(
            f"{shown(spec.input)} has no column {' or '.join(sorted(missing))}; "
            f"it has {', '.join(sorted(names))}.",
            what_to_do=what_to_do,
            still_running=NO_ROW_SENT,
        )
    return True


def read_object(line: bytes, number: int, uri: str) -> Any:
    """What a line of JSON says; None when it is not JSON, which is the row's own error.

    Raises :class:`BatchInputError` when the line is not UTF-8.
    """
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        # Only a line that fails can have another encoding.
        try:
            line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise BatchInputError(
                f"Line {number} of {uri} is not UTF-8 (byte {error.start + 1} of the line).",
                what_to_do="Write the input as UTF-8.",
                still_running=NO_ROW_SENT,
            ) from error
    return None


def _stamp(info: dict[str, Any], file: Path | None) -> str:
    if file is not None:
        stat = file.stat()
        return f"{stat.st_size}-{stat.st_mtime_ns}-{stat.st_ino}"
    return "-".join(str(info[key]) for key in _STAMPS if info.get(key) is not None)


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
