"""How fast a batch goes: rates over the last seconds, and how long it will take."""

from __future__ import annotations

from collections import deque

from airflow_arcadia.batch.output.segments import Counts
from airflow_arcadia.batch.spec import Progress

WINDOW_S = 30.0
"""Rates are over this many seconds: long enough to be steady, short enough to show a change."""


class Meter:
    """Turns counts into progress. Pure: the time is passed in, in seconds."""

    def __init__(self, total: int, counts: Counts, now: float) -> None:
        self._total = total
        self._marks: deque[tuple[float, int, int]] = deque(
            [(now, counts.ok + counts.failed, counts.completion_tokens)]
        )

    def progress(self, counts: Counts, now: float) -> Progress:
        """Progress as of now; call it regularly."""
        done = counts.ok + counts.failed
        self._marks.append((now, done, counts.completion_tokens))
        while len(self._marks) > 2 and self._marks[1][0] <= now - WINDOW_S:
            self._marks.popleft()
        then, done_then, tokens_then = self._marks[0]
        elapsed = now - then
        rate = (done - done_then) / elapsed if elapsed > 0 else 0.0
        return Progress(
            done=done,
            total=self._total,
            ok=counts.ok,
            failed=counts.failed,
            rows_per_s=rate,
            tokens_per_s=(counts.completion_tokens - tokens_then) / elapsed if elapsed > 0 else 0.0,
            eta_s=(self._total - done) / rate if rate > 0 else None,
        )
