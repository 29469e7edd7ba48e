"""Collects answered rows and commits them as segments, off the event loop."""

from __future__ import annotations

import asyncio
import time

from airflow_arcadia.batch.output.job import Job
from airflow_arcadia.batch.output.segments import SegmentBuffer

SEGMENT_BYTES = 8 * 2**20
"""A segment is committed at this size at the latest: what memory answers may take, twice."""


class SegmentWriter:
    """One commit at a time; rows answered meanwhile collect for the next.

    :param rows: most rows in one segment.
    :param seconds: after which rows are committed at the latest; :meth:`tick` looks.
    """

    def __init__(self, job: Job, rows: int, seconds: float) -> None:
        self._job = job
        self._rows, self._seconds = rows, seconds
        self._buffer = SegmentBuffer()
        self._commit: asyncio.Task[None] | None = None
        self._since = time.monotonic()
        self.error: BaseException | None = None
        """Why nothing can be committed any more."""

    def add(
        self, row: int, line: bytes, *, failed: bool, prompt_tokens: int = 0, completion_tokens: int = 0
    ) -> None:
        """Take an answered row."""
        buffer, job = self._buffer, self._job
        buffer.add(row, line, failed=failed)
        buffer.counts.prompt_tokens += prompt_tokens
        buffer.counts.completion_tokens += completion_tokens
        job.counts.prompt_tokens += prompt_tokens
        job.counts.completion_tokens += completion_tokens
        if failed:
            job.counts.failed += 1
        else:
            job.counts.ok += 1
        job.states[row] = 2 if failed else 1
        if len(buffer.lines) >= self._rows or buffer.size >= SEGMENT_BYTES:
            self._start()

    @property
    def has_room(self) -> bool:
        """Whether rows may be sent: storage keeps up with the answers."""
        return self._commit is None or (
            len(self._buffer.lines) < self._rows and self._buffer.size < SEGMENT_BYTES
        )

    async def room(self) -> None:
        """Wait until there is room."""
        while not self.has_room and self._commit is not None:
            await asyncio.wait([self._commit])

    def tick(self) -> None:
        """Commit what has waited long enough."""
        if self._buffer.lines and time.monotonic() - self._since >= self._seconds:
            self._start()

    async def flush(self) -> None:
        """Commit all of it. Raises what made a commit fail."""
        while self._commit is not None or self._buffer.lines:
            self._start()
            if self._commit is not None:
                await asyncio.wait([self._commit])
            if self.error is not None:
                raise self.error

    def _start(self) -> None:
        if self._commit is None and self.error is None:
            self._commit = asyncio.get_running_loop().create_task(self._run(self._take()))

    def _take(self) -> SegmentBuffer:
        now = time.monotonic()
        buffer, self._buffer = self._buffer, SegmentBuffer()
        buffer.counts.seconds = now - self._since
        self._job.counts.seconds += buffer.counts.seconds
        self._since = now
        return buffer

    async def _run(self, buffer: SegmentBuffer) -> None:
        try:
            await asyncio.get_running_loop().run_in_executor(None, self._job.commit, buffer)
        except BaseException as error:
            self.error = error
            if not isinstance(error, Exception):
                raise
        finally:
            self._commit = None
