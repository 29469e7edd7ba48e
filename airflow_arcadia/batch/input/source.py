"""The input: where it is, which format it has, and its bytes as lines."""

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
from airflow_arcadia.batch.openai_format import MAX_LINE_BYTES
from airflow_arcadia.batch.spec import NO_ROW_SENT, BatchSpec
from airflow_arcadia.batch.storage import is_local, resolve
from airflow_arcadia.exceptions import BatchInputError

_FORMATS = {".csv": "csv", ".parquet": "parquet", ".pq": "parquet"}
_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
_BROKEN = (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError)


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


def locate(spec: BatchSpec) -> Input:
    """Find the input. Raises :class:`BatchInputError` when it is missing, a folder, or empty."""
    uri = spec.input
    fs, path = resolve(uri)
    # What a listing said before may be out of date.
    fs.invalidate_cache()
    try:
        info = fs.info(path)
    except FileNotFoundError as error:
        raise BatchInputError(
            f"The input {uri} does not exist.", what_to_do="Correct the path.", still_running=NO_ROW_SENT
        ) from error
    except OSError as error:
        raise BatchInputError(
            f"The input {uri} cannot be read: {error}.",
            what_to_do="Correct the path or the rights on it.",
            still_running=NO_ROW_SENT,
        ) from error
    if info.get("type") == "directory":
        raise BatchInputError(
            f"The input {uri} is a folder.", what_to_do="Name one file.", still_running=NO_ROW_SENT
        )
    if not info.get("size", 1):
        raise empty(uri)
    file = Path(path) if is_local(fs) else None
    in_place = file if format_of(spec) == ("jsonl", None) else None
    return Input(uri, fs, path, in_place, _stamp(info, file))


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
    with _bytes(source, compression) as file:
        try:
            if kind == "csv":
                yield csv_lines(file, source.uri)
            elif kind == "parquet":
                yield parquet_lines(file, source.uri)
            else:
                yield _pieces(file)
        except _BROKEN as error:
            raise BatchInputError(
                f"The input {source.uri} cannot be decompressed: {error}.",
                what_to_do="Write it again.",
                still_running=NO_ROW_SENT,
            ) from error


def _bytes(source: Input, compression: str | None) -> Any:
    file = source.fs.open(source.path, "rb")
    return fsspec.compression.compr[compression](file, mode="rb") if compression else file


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    reader = io.BufferedReader(_Raw(file), 1 << 20)
    while piece := reader.readline(MAX_LINE_BYTES + 2):
        yield piece


def check_columns(first: bytes, spec: BatchSpec) -> None:
    """Raise :class:`BatchInputError` unless the first row of a table has what becomes the prompt."""
    if not is_table(spec) or spec.prompt_template is not None:
        return
    names = columns(first)
    wanted = {spec.prompt_column} if spec.prompt_column else {"prompt", "messages", "input"}
    if not wanted & names:
        raise BatchInputError(
            f"{spec.input} has no column {' or '.join(sorted(wanted))}; it has {', '.join(sorted(names))}.",
            what_to_do="Set prompt_column or prompt_template.",
            still_running=NO_ROW_SENT,
        )


def check_text(line: bytes, number: int, uri: str) -> None:
    """Raise :class:`BatchInputError` when a line is not UTF-8."""
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
                still_running=NO_ROW_SENT,
            ) from error


def _stamp(info: dict[str, Any], file: Path | None) -> str:
    if file is not None:
        stat = file.stat()
        return f"{stat.st_size}-{stat.st_mtime_ns}-{stat.st_ino}"
    tags = [
        info.get(key) for key in ("size", "ETag", "etag", "LastModified", "mtime", "created", "generation")
    ]
    return "-".join(str(tag) for tag in tags if tag is not None)


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
