"""Count the rows that repeat the ``custom_id`` of an earlier row, in bounded memory."""

from __future__ import annotations

import tempfile
from array import array
from typing import IO

_BUCKETS = 64
_IN_MEMORY = 1 << 19
"""Hashes kept in memory, 8 bytes each; then they go to a temporary file."""


class CustomIds:
    """Counts duplicates by a 64-bit hash of each id, bucket by bucket, so that one bucket fits in memory."""

    def __init__(self) -> None:
        self._buckets = [array("q") for _ in range(_BUCKETS)]
        self._held = 0
        self._spill: IO[bytes] | None = None
        self._spilt: list[list[tuple[int, int]]] = [[] for _ in range(_BUCKETS)]
        """Per bucket: where its hashes are in the temporary file, and how many bytes."""

    def add(self, custom_id: str) -> None:
        """Take the id of the next row."""
        key = hash(custom_id)
        self._buckets[key % _BUCKETS].append(key)
        self._held += 1
        if self._held >= _IN_MEMORY:
            self._write()

    def duplicates(self) -> int:
        """How many ids were there before. The object is of no use afterwards."""
        found = 0
        for number, bucket in enumerate(self._buckets):
            for offset, length in self._spilt[number]:
                assert self._spill is not None  # noqa: S101 - for the type checker
                self._spill.seek(offset)
                bucket.frombytes(self._spill.read(length))
            found += len(bucket) - len(set(bucket))
            del bucket[:]
        if self._spill is not None:
            self._spill.close()
        return found

    def _write(self) -> None:
        if self._spill is None:
            self._spill = tempfile.TemporaryFile()  # noqa: SIM115 - closed by duplicates, or with the object
        for number, bucket in enumerate(self._buckets):
            data = bucket.tobytes()
            self._spilt[number].append((self._spill.tell(), len(data)))
            self._spill.write(data)
            del bucket[:]
        self._held = 0
