"""Decides from an engine's counters whether it hangs, and since when nobody has used it. Pure.

An engine with requests running whose counters stand still hangs: its HTTP server answers, its ranks do not.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass

from airflow_arcadia.batch.transport.hang_detector import count_tokens

_STEPS = re.compile(rb"^vllm:iteration_tokens_total_count(?:\{[^}]*\})? (\S+)", re.MULTILINE)


@dataclass(frozen=True)
class Look:
    """What was seen at one moment.

    :param at: monotonic time in seconds.
    :param count: tokens and engine steps so far, None where they cannot be read.
    :param running: requests that wait for the engine.
    :param used: whether a client has used the worker since the look before.
    """

    at: float
    count: float | None
    running: int
    used: bool


@dataclass(frozen=True)
class EngineHealth:
    """What follows from the looks so far; times are monotonic seconds.

    :param looked_at: when the last look was.
    :param progress_at: when the engine last moved, or had nothing to do.
    :param used_at: when a client last used the worker.
    :param hung_since: when it was found to hang, None while it does not.
    """

    looked_at: float
    progress_at: float
    used_at: float
    count: float | None = None
    hung_since: float | None = None

    @classmethod
    def start(cls, now: float) -> EngineHealth:
        """Nothing is known yet but that the engine has just generated."""
        return cls(now, now, now)

    def after(self, look: Look, *, hang_timeout: float, interval: float) -> EngineHealth:
        """The health after one more look.

        :param interval: seconds between looks as planned. What took longer (a suspended machine, a blocked
            event loop) is not held against the engine.
        """
        pause = max(0.0, look.at - self.looked_at - 2 * interval)
        progress_at, hung_since = self.progress_at + pause, self.hung_since
        # Without a count a hang cannot be told from slow work.
        if look.count is None or look.count != self.count or (hung_since is None and not look.running):
            progress_at, hung_since = look.at, None
        elif hung_since is None and hang_timeout and look.at - progress_at >= hang_timeout:
            hung_since = look.at
        return dataclasses.replace(
            self,
            looked_at=look.at,
            progress_at=progress_at,
            used_at=look.at if look.used else self.used_at + pause,
            count=look.count,
            hung_since=hung_since,
        )


def forgotten(idle_s: float, *, idle_timeout: float, renewed_s_ago: float, lease_duration: float) -> bool:
    """Whether a worker that nobody has used for ``idle_s`` seconds is held by nobody any more.

    While a run is alive its lease is renewed every third of its duration: one that missed a renewal has no
    holder, or none that can hold it.
    """
    return idle_s >= idle_timeout and renewed_s_ago > lease_duration / 2


def count_progress(metrics: bytes) -> float | None:
    """Tokens and steps of the engine so far, from the text of ``/metrics``; None when there are none."""
    tokens = count_tokens(metrics)
    try:
        steps = [float(text) for text in _STEPS.findall(metrics)]
    except ValueError:
        return tokens
    return tokens if not steps else (tokens or 0.0) + sum(steps)
