"""Rounds alternate, and ratios are taken within a round."""

from __future__ import annotations

from benchmarks.rounds import alternate, ratios, summary


def test_every_round_begins_with_another_way_and_the_first_does_not_count():
    ran: list[tuple[int, str]] = []

    def way(name: str, number: int) -> float:
        ran.append((number, name))
        return float(number)

    ways = {name: lambda number, name=name: way(name, number) for name in "abc"}
    seconds = alternate(ways, 2, settle_s=0)
    assert [name for _, name in ran] == [*"abc", *"bca", *"cab"]
    assert seconds == {name: [1.0, 2.0] for name in "abc"}


def test_a_way_is_compared_with_the_base_of_its_own_round():
    assert ratios([1.0, 4.0], [2.0, 2.0]) == [0.5, 2.0]
    assert summary([0.5, 2.0, 1.0]) == {"median": 1.0, "min": 0.5, "max": 2.0}
