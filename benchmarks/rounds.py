"""Alternating rounds: every way is measured once a round, so that a slow minute hits all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

SETTLE_S = 1.5
"""Between two ways: vLLM's processes spin for a second after their last row, on the next way's CPUs."""


def alternate(
    ways: Mapping[str, Callable[[int], float]], rounds: int, *, settle_s: float = SETTLE_S
) -> dict[str, list[float]]:
    """Seconds of every way, a figure for each counted round.

    :param ways: each takes the number of the round and returns its seconds. Round 0 warms up and does not
        count.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        # Each round begins with another way: coming first or last after a pause is no one's advantage.
        order = list(ways)
        for name in [*order[number % len(order) :], *order[: number % len(order)]]:
            time.sleep(settle_s)
            took = ways[name](number)
            print(f"round {number}: {name:>14} {took:7.2f} s", flush=True)
            if number:
                seconds[name].append(took)
    return seconds


def ratios(base: Sequence[float], seconds: Sequence[float]) -> list[float]:
    """How fast a way was in each round, as a multiple of ``base`` in the same round."""
    return [of_base / own for of_base, own in zip(base, seconds, strict=True)]


def summary(values: Sequence[float], digits: int = 3) -> dict[str, float]:
    """Median, lowest and highest."""
    return {
        "median": round(statistics.median(values), digits),
        "min": round(min(values), digits),
        "max": round(max(values), digits),
    }
