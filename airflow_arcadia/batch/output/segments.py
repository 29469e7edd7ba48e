"""Segments: answered rows that are committed together. A committed segment is its own checkpoint.

A segment is a log of frames (length and CRC-32, then a line of the output) and a footer with the row numbers
and where each frame starts. An attempt that resumes reads footers only; a segment whose footer is incomplete
counts as absent.
"""

from __future__ import annotations

import os
import struct
import zlib
from array import array
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson

from airflow_arcadia.batch.storage import sync

FAILED = 1 << 31
"""Set in a row number of a footer when the row is an error row."""

_FRAME = struct.Struct("<II")
"""Length of the line in bytes, CRC-32 over it."""
_TAIL = struct.Struct("<QIII8s")
"""Length of the frames in bytes, number of rows, length of the counts, CRC-32 of the footer, magic."""
_MAGIC = b"arcadia1"
_OPEN_FILES = 64
_FIRST_READ = 64 * 1024
"""Bytes from the end of a segment that are read at first: they hold the footer of 5,000 rows."""


@dataclass
class Counts:
    """What the rows of one or more segments sum up to. ``seconds`` is time spent running."""

    ok: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0

    def add(self, other: Counts) -> None:
        """Add another's to these."""
        self.ok += other.ok
        self.failed += other.failed
        self.prompt_tokens += other.prompt_tokens
        self.completion_tokens += other.completion_tokens
        self.seconds += other.seconds


@dataclass(frozen=True)
class Footer:
    """A segment's footer.

    :param rows: row numbers in the order of the frames, :data:`FAILED` set for error rows.
    :param offsets: where each frame starts, in bytes.
    """

    rows: Sequence[int]
    offsets: Sequence[int]
    counts: Counts


class DamagedSegment(Exception):
    """A frame differs from what was written.

    :param path: the segment.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self.path = path


class SegmentBuffer:
    """Rows answered since the last commit."""

    def __init__(self) -> None:
        self.rows = array("I")
        self.counts = Counts()
        self._offsets = array("Q")
        self._frames = bytearray()
        """The lines, copied: the bytes that orjson returns are several times larger than they look."""

    @property
    def size(self) -> int:
        """Bytes of memory that the lines take."""
        return len(self._frames)

    def add(self, row: int, line: bytes, *, failed: bool) -> None:
        """Take a row's line of the output."""
        self.rows.append(row | FAILED if failed else row)
        self._offsets.append(len(self._frames))
        self._frames += _FRAME.pack(len(line), zlib.crc32(line))
        self._frames += line
        if failed:
            self.counts.failed += 1
        else:
            self.counts.ok += 1

    def write(self, path: Path) -> None:
        """Write the segment and fsync it."""
        counts = orjson.dumps(asdict(self.counts))
        footer = self.rows.tobytes() + self._offsets.tobytes() + counts
        with path.open("wb") as file:
            file.write(self._frames)
            file.write(footer)
            file.write(_TAIL.pack(self.size, len(self.rows), len(counts), zlib.crc32(footer), _MAGIC))
            sync(file)


def read_footer(path: Path) -> Footer | None:
    """The footer of a segment; None when it is torn."""
    with path.open("rb") as file:
        return footer_of(
            lambda start, end: os.pread(file.fileno(), end - start, start), os.fstat(file.fileno()).st_size
        )


def footer_of(read: Callable[[int, int], bytes], size: int) -> Footer | None:
    """The footer of a segment, by one or two ranged reads; None when it is torn.

    :param read: gives the segment's bytes from a start up to an end.
    :param size: of the segment, in bytes.
    """
    if size < _TAIL.size:
        return None
    start = max(0, size - _FIRST_READ)
    end = read(start, size)
    if len(end) != size - start:
        return None
    data_length, count, counts_length, crc, magic = _TAIL.unpack(end[-_TAIL.size :])
    # 4 bytes for a row's number and 8 for its offset
    length = 12 * count + counts_length
    if magic != _MAGIC or data_length + length + _TAIL.size != size:
        return None
    whole = end if data_length >= start else read(data_length, size)
    footer = whole[-length - _TAIL.size : -_TAIL.size]
    if len(footer) != length or zlib.crc32(footer) != crc:
        return None
    rows, offsets = array("I"), array("Q")
    rows.frombytes(footer[: 4 * count])
    offsets.frombytes(footer[4 * count : 12 * count])
    return Footer(rows, offsets, Counts(**orjson.loads(footer[12 * count :])))


class SegmentReader:
    """Reads single lines out of many segments, with few files open at once."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self._open: OrderedDict[int, int] = OrderedDict()

    def read(self, segment: int, offset: int) -> bytes:
        """The line of the frame at ``offset``. Raises :class:`DamagedSegment`."""
        descriptor = self._descriptor(segment)
        # Most answers fit in the first read.
        data = os.pread(descriptor, 4096, offset)
        if len(data) < _FRAME.size:
            raise DamagedSegment(self._paths[segment])
        length, crc = _FRAME.unpack_from(data)
        line = data[_FRAME.size : _FRAME.size + length]
        if len(line) < length:
            line = os.pread(descriptor, length, offset + _FRAME.size)
        if len(line) < length or zlib.crc32(line) != crc:
            raise DamagedSegment(self._paths[segment])
        return line

    def close(self) -> None:
        """Close what is open."""
        while self._open:
            os.close(self._open.popitem()[1])

    def _descriptor(self, segment: int) -> int:
        descriptor = self._open.get(segment)
        if descriptor is not None:
            self._open.move_to_end(segment)
            return descriptor
        if len(self._open) >= _OPEN_FILES:
            os.close(self._open.popitem(last=False)[1])
        descriptor = self._open[segment] = os.open(self._paths[segment], os.O_RDONLY)
        return descriptor
