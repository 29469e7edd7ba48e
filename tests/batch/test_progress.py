"""How far a batch is, and how its progress over time is kept small."""

from __future__ import annotations

import itertools
import json

from airflow_arcadia.batch.progress import MOST_POINTS, History, Progress


def at(done: int) -> Progress:
    return Progress(done, 100_000, done, 0, rows_per_s=2.0, tokens_per_s=10.0, eta_s=None)


def test_a_short_history_has_every_point():
    history = History()
    for i in range(5):
        history.add(100.0 + i, at(i))
    assert history.points[1] == [101.0, 1, 2.0, 10.0]
    assert len(history.points) == 5


def test_a_long_history_stays_small_and_covers_all_of_the_time():
    history = History()
    for i in range(10_000):
        history.add(100.0 + i, at(i))
        assert len(history.points) <= MOST_POINTS
    times = [point[0] for point in history.points]
    assert times[0] == 100.0
    assert times[-1] > 9_500
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert max(gaps) <= 4 * min(gaps)
    assert len(json.dumps(history.points)) < 4096
