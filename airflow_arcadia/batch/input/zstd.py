"""Read zstd, and refuse a file that was cut off."""

from __future__ import annotations

import io
from typing import Any, BinaryIO

import zstandard

_READ = 1 << 18


class ZstdReader(io.RawIOBase):
    """The content of one or more zstd frames. Raises EOFError for a file that was cut off.

    zstandard's own reader takes the end of the file for the end of the content.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._frame: Any = None
        self._rest = b""
        """Compressed bytes that were read and not yet taken."""
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            if not self._rest:
                self._rest = self._file.read(_READ)
            if not self._rest:
                if self._frame is not None:
                    raise EOFError("the file ends in the middle of its content")
                return 0
            if self._frame is None:
                self._frame = zstandard.ZstdDecompressor().decompressobj()
            self._ready = memoryview(self._frame.decompress(self._rest))
            self._rest = b""
            if self._frame.eof:
                self._rest = self._frame.unused_data
                self._frame = None
        taken = self._ready[: len(buffer)]
        buffer[: len(taken)] = taken
        self._ready = self._ready[len(taken) :]
        return len(taken)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()
