"""Sources that are read in the background: shared, bounded in time, and honest about what is away."""

from __future__ import annotations

import threading

from airflow_arcadia.ui.cache import MOST_VALUES, Sources
from tests.conftest import wait_for


class Clock:
    """Monotonic seconds that a test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_readers_within_the_time_to_live_share_one_reading():
    clock, asked = Clock(), []
    sources = Sources(ttl_s=2, clock=clock)

    def ask() -> int:
        asked.append(1)
        return len(asked)

    for _ in range(50):
        assert sources.read({"a": ask})["a"].value == 1
    clock.now = 2.5
    assert sources.read({"a": ask})["a"].value == 2


def test_a_source_that_fails_keeps_its_last_value_and_says_why():
    clock = Clock()
    sources = Sources(ttl_s=1, clock=clock)
    assert sources.read({"a": lambda: "before"})["a"].error is None
    clock.now = 5

    def fail() -> str:
        raise OSError("it is away")

    reading = sources.read({"a": fail})["a"]
    assert (reading.value, reading.error) == ("before", "it is away")


def test_a_source_that_hangs_does_not_hold_the_others_up():
    sources, release = Sources(wait_s=0.05), threading.Event()

    def hang() -> str:
        release.wait(30)
        return "late"

    read = sources.read({"slow": hang, "quick": lambda: 1})
    assert read["quick"].value == 1
    assert (read["slow"].value, read["slow"].error) == (None, "No answer yet.")
    release.set()
    wait_for(lambda: sources.read({"slow": hang})["slow"].value == "late", 10, "the late answer")


def test_what_nobody_asks_for_any_more_is_forgotten():
    sources = Sources(ttl_s=1000)
    for name in range(MOST_VALUES + 5):
        sources.read({"kept": lambda: "kept", str(name): lambda: "value"})
    assert sources.kept("0") is None
    assert sources.kept("kept") == "kept"


def test_after_a_change_everything_is_read_anew():
    values = iter([1, 2])
    sources = Sources(ttl_s=1000)
    assert sources.read({"a": lambda: next(values)})["a"].value == 1
    sources.forget()
    assert sources.read({"a": lambda: next(values)})["a"].value == 2
