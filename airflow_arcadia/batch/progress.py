"""How far a batch is, its rates over the last seconds, and how long it will take."""

from __future__ import annotations

import dataclasses
import enum
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from airflow_arcadia.batch.output.segments import Counts
from airflow_arcadia.validation import mapping, parse

WINDOW_S = 30.0
"""Rates are over this many seconds: long enough to be steady, short enough to show a change."""
MOST_POINTS = 60
"""Points that a :class:`History` keeps."""


class Phase(str, enum.Enum):
    """What a batch that runs is doing, in OpenAI's words; before the first of them it validates its input."""

    IN_PROGRESS = "in_progress"
    """Its rows are being answered."""
    FINALIZING = "finalizing"
    """All rows are done, and the output is being written."""


@dataclass(frozen=True)
class Progress:
    """How far a batch is.

    :param done: rows answered or failed for good, earlier attempts included.
    :param total: rows of the input.
    :param ok: rows answered.
    :param failed: error rows.
    :param rows_per_s: over the last seconds.
    :param tokens_per_s: generated tokens, over the last seconds.
    :param eta_s: seconds left at this rate; None while nothing is known.
    :param prompt_tokens: as the engine counted them, earlier attempts included.
    :param completion_tokens: likewise.
    """

    done: int
    total: int
    ok: int
    failed: int
    rows_per_s: float
    tokens_per_s: float
    eta_s: float | None
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def __str__(self) -> str:
        """One line for a log."""
        eta = f"{self.eta_s:.0f} s" if self.eta_s is not None else "unknown"
        return (
            f"{self.done} / {self.total} rows ({self.failed} failed), {self.rows_per_s:.1f} rows/s, "
            f"{self.tokens_per_s:.0f} tokens/s, ETA {eta}"
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe form."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Progress:
        """Inverse of :meth:`to_dict`; what a worker of another version says beside it is left out.

        Raises :class:`~airflow_arcadia.exceptions.ArcadiaConfigError` for what is not a progress: a worker
        may be sick.
        """
        given, known = mapping(raw, "progress"), {field.name for field in dataclasses.fields(cls)}
        return parse(cls, {key: value for key, value in given.items() if key in known}, "progress")


class History:
    """Progress over time in at most :data:`MOST_POINTS` points, thinned evenly as it gets longer.

    :ivar points: lists of seconds since the epoch, rows done, rows per second, tokens per second.
    """

    def __init__(self) -> None:
        self.points: list[list[float]] = []
        self._step = 0.0

    def add(self, at: float, progress: Progress) -> None:
        """Note the progress as of ``at``, unless that is too soon after the last point."""
        if self.points and at - self.points[-1][0] < self._step:
            return
        rates = round(progress.rows_per_s, 2), round(progress.tokens_per_s, 1)
        self.points.append([round(at, 1), progress.done, *rates])
        if len(self.points) > MOST_POINTS:
            self.points = self.points[::2]
            self._step = 2 * (self.points[-1][0] - self.points[0][0]) / MOST_POINTS


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
            prompt_tokens=counts.prompt_tokens,
            completion_tokens=counts.completion_tokens,
        )
