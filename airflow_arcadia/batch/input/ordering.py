"""The order in which rows are sent: rows with a common prefix together, rows that may run long first.

An engine's prefix cache serves a row whose beginning it has just computed. Rows are sorted by hashes of ever
longer beginnings of their text, so that rows with the longest common beginning end up side by side, without
keeping any text: a row's key has two bytes per length. Sorting is external, in runs of bounded size.
"""

from __future__ import annotations

import heapq
import os
import struct
import zlib
from array import array
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from airflow_arcadia.batch.openai_format import Request, RowError, content_of
from airflow_arcadia.batch.storage import sync

LENGTHS = (32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 16384, 32768)
"""Bytes of text at which beginnings are compared. Two hashes out of 65,536 that collide cost a cache hit."""

_KEY = struct.Struct(f">HB{len(LENGTHS)}HI")
"""Hash of the model, length class, a hash per length, row number: sorts as bytes.

The model comes first: an engine has few adapters loaded at a time, and each is to be loaded once."""
_RUN_ROWS = 16384
"""Rows sorted in memory at once: about 2 MiB."""
_LIMITS = ("max_completion_tokens", "max_tokens", "max_output_tokens")
_UNKNOWN_LENGTH = 0
"""Class of rows without a limit, which may run longest."""


def sort_key(request: Request | RowError, row: int) -> bytes:
    """The row's key: rows are sent in the order of their keys."""
    if isinstance(request, RowError):
        # It is not sent at all, so it comes last.
        return _KEY.pack(0xFFFF, 255, *[0] * len(LENGTHS), row)
    text = _text(request.body)
    hashes = [0] * len(LENGTHS)
    crc = begin = 0
    for number, end in enumerate(LENGTHS):
        crc = zlib.crc32(text[begin:end], crc)
        hashes[number] = crc & 0xFFFF
        if end >= len(text):
            break
        begin = end
    model = zlib.crc32(str(request.body["model"]).encode()) % 0xFFFF
    return _KEY.pack(model, _length_class(request.body), *hashes, row)


def write_order(rows: int, parse: Callable[[int], Request | RowError], path: Path) -> None:
    """Write the row numbers in the order to send them, 4 bytes each.

    :param parse: a row's request by its number.
    """
    runs = path.with_name(f"{path.name}-runs")
    try:
        with runs.open("w+b") as spill, path.open("wb", buffering=1 << 16) as out:
            bounds = []
            for first in range(0, rows, _RUN_ROWS):
                last = min(first + _RUN_ROWS, rows)
                keys = sorted(sort_key(parse(row), row) for row in range(first, last))
                spill.writelines(keys)
                bounds.append((first * _KEY.size, last * _KEY.size))
            spill.flush()
            runs_sorted = [_read_run(spill.fileno(), begin, end) for begin, end in bounds]
            block = array("I")
            for key in heapq.merge(*runs_sorted):
                block.append(int.from_bytes(key[-4:], "big"))
                if len(block) == 4096:
                    out.write(block.tobytes())
                    del block[:]
            out.write(block.tobytes())
            sync(out)
    finally:
        runs.unlink(missing_ok=True)


def read_order(path: Path) -> Iterator[int]:
    """The row numbers of an order, a block at a time."""
    with path.open("rb") as file:
        while data := file.read(16384):
            block = array("I")
            block.frombytes(data)
            yield from block


def order_ready(path: Path, rows: int) -> bool:
    """Whether the order exists and is complete."""
    try:
        return path.stat().st_size == 4 * rows
    except FileNotFoundError:
        return False


def _read_run(descriptor: int, begin: int, end: int) -> Iterator[bytes]:
    size = _KEY.size
    while begin < end:
        data = os.pread(descriptor, min(256 * size, end - begin), begin)
        begin += len(data)
        for at in range(0, len(data), size):
            yield data[at : at + size]


def _text(body: Mapping[str, Any]) -> bytes:
    """What the engine's cache sees, as far as it matters: the model, tools, then the prompt."""
    content = content_of(body)
    prefix = f"{body['model']}\0".encode()
    if tools := body.get("tools"):
        prefix += orjson.dumps(tools)
    return prefix + (content.encode() if isinstance(content, str) else orjson.dumps(content))


def _length_class(body: Mapping[str, Any]) -> int:
    """Smaller for rows that may generate more: classes are powers of two, so that prefixes stay together."""
    limit = next((body[key] for key in _LIMITS if body.get(key)), None)
    if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
        return _UNKNOWN_LENGTH
    return max(1, 64 - limit.bit_length())
