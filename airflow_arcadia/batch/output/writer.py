"""Collects answered rows and commits them as segments, off the event loop."""

from __future__ import annotations

import asyncio
import logging
import time

from airflow_arcadia.batch.output.job import Job
from airflow_arcadia.batch.output.segments import SegmentBuffer
from airflow_arcadia.batch.storage import is_full
from airflow_arcadia.exceptions import ArcadiaError

log = logging.getLogger(__name__)

SEGMENT_BYTES = 8 * 2**20
"""A segment is committed at this size at the latest: what memory answers may take, twice."""
PATIENCE_S = 600.0
"""How long a commit that the storage refuses is tried again, while answers wait and no row is sent."""
LAST_PATIENCE_S = 10.0
"""The same once the batch ends early."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 15.0
_PERMANENT = (
    *(ArcadiaError, PermissionError, FileNotFoundError, NotADirectoryError, IsADirectoryError),
    *(TypeError, ValueError, LookupError, AttributeError, AssertionError, MemoryError),
)
"""What no waiting mends: refusals, and faults of the program."""


class SegmentWriter:
    """One commit at a time; rows answered meanwhile collect for the next.

    :param rows: most rows in one segment.
    :param seconds: after which rows are committed at the latest; :meth:`tick` looks.
    :param patience: seconds for which a commit that the storage refuses is tried again.
    """

    def __init__(self, job: Job, rows: int, seconds: float, patience: float = PATIENCE_S) -> None:
        self._job = job
        self._patience = patience
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
        if len(buffer.rows) >= self._rows or buffer.size >= SEGMENT_BYTES:
            self._start()

    @property
    def has_room(self) -> bool:
        """Whether rows may be sent: storage keeps up with the answers."""
        return self._commit is None or (
            len(self._buffer.rows) < self._rows and self._buffer.size < SEGMENT_BYTES
        )

    async def wait_for_space(self) -> None:
        """Wait until storage keeps up with the answers."""
        while not self.has_room and self._commit is not None:
            await asyncio.wait([self._commit])

    def tick(self) -> None:
        """Commit what has waited long enough."""
        if self._buffer.rows and time.monotonic() - self._since >= self._seconds:
            self._start()

    async def flush(self, *, patient: bool = True) -> None:
        """Commit all of it. Raises what made a commit fail.

        :param patient: whether to wait as long as ever for a storage that refuses.
        """
        if not patient:
            self._patience = min(self._patience, LAST_PATIENCE_S)
        while self._commit is not None or self._buffer.rows:
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
            await self._try_to_commit(buffer)
        except BaseException as error:
            self.error = error
            if not isinstance(error, Exception):
                raise
        finally:
            self._commit = None

    async def _try_to_commit(self, buffer: SegmentBuffer) -> None:
        """Commit, again and again while the storage may only be having a bad time."""
        loop = asyncio.get_running_loop()
        began, pause = time.monotonic(), _FIRST_PAUSE_S
        while True:
            try:
                return await loop.run_in_executor(None, self._job.commit, buffer)
            except Exception as error:
                if isinstance(error, _PERMANENT) or is_full(error):
                    raise
                if time.monotonic() - began + pause > self._patience:
                    raise
                log.warning("A commit failed, and is tried again in %.1f s: %r", pause, error)
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)
