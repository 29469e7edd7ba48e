"""Bounds the bytes of rows in flight."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from pathlib import Path

import psutil

from airflow_arcadia.batch.openai_format import MAX_LINE_BYTES

_SHARE = 16
"""A row in flight takes about 4.5 times its size: its line, its request, its bundle. So a third of memory."""
_CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


class ByteBudget:
    """Bytes that may be held at once, first come first served. One event loop only.

    :param limit: in bytes. What is larger is let through alone.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def acquire(self, size: int) -> None:
        """Wait until so many bytes are free, and hold them."""
        if not self._waiting and self._fits(size):
            self._held += size
            return
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((size, future))
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self.release(size)
            raise

    def release(self, size: int) -> None:
        """Let go of bytes that were held."""
        self._held -= size
        while self._waiting:
            wanted, future = self._waiting[0]
            if not future.done():
                if not self._fits(wanted):
                    return
                self._held += wanted
                future.set_result(None)
            self._waiting.popleft()

    def _fits(self, size: int) -> bool:
        return not self._held or self._held + size <= self._limit


def default_bytes_in_flight() -> int:
    """How many bytes of rows may be in flight on this machine, or in this container."""
    available = psutil.virtual_memory().available
    for limit, used in _CGROUPS:
        with suppress(OSError, ValueError):
            available = min(available, int(Path(limit).read_text()) - int(Path(used).read_text()))
    return max(available // _SHARE, MAX_LINE_BYTES)
