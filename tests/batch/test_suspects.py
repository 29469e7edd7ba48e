"""The row that kills an engine is found, and its neighbours are not taken for it."""

import random

import pytest

from airflow_arcadia.batch.suspects import MAX_DEATHS_ALONE, PendingRow, Suspects


def search(suspects: Suspects, poison: set[int]) -> tuple[list[int], int]:
    """Send one suspect group after the other to an engine that the poison kills: who is convicted, and how
    often it died."""
    convicted: list[int] = []
    deaths = 0
    while suspects:
        sent = []
        while (row := suspects.next) is not None:
            assert row.suspect
            sent.append(suspects.take())
            if row.alone:
                break
        if any(row.row in poison for row in sent):
            deaths += 1
            found, innocent = suspects.blame(sent)
            assert not innocent
            for row in found:
                suspects.clear(row)
                convicted.append(row.row)
        else:
            for row in sent:
                suspects.clear(row)
    return convicted, deaths


def take_group(suspects: Suspects) -> list[PendingRow]:
    sent = []
    while suspects.next is not None:
        sent.append(suspects.take())
    return sent


def died_with(count: int) -> tuple[Suspects, list[PendingRow]]:
    suspects, rows = Suspects(), [PendingRow(number) for number in range(count)]
    assert suspects.blame(rows) == ([], [])
    return suspects, rows


def test_a_death_for_another_reason_costs_nothing():
    suspects, rows = died_with(512)
    assert search(suspects, set()) == ([], 0)
    assert not any(row.suspect or row.alone for row in rows)


@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 64, 65, 512])
def test_the_row_that_kills_the_engine_is_found_with_few_deaths(count: int):
    for poison in {0, count // 2, count - 1}:
        suspects, _ = died_with(count)
        convicted, deaths = search(suspects, {poison})
        assert convicted == [poison]
        # Once all together, once for each of three divisions by eight, and alone.
        assert deaths <= 1 + 3 + MAX_DEATHS_ALONE


def test_several_rows_that_kill_the_engine_are_all_found_and_nobody_else():
    for seed in range(20):
        poison = set(random.Random(seed).sample(range(200), 5))
        suspects, _ = died_with(200)
        convicted, _ = search(suspects, poison)
        assert set(convicted) == poison


def test_rows_beside_a_group_under_test_are_not_suspected():
    suspects, _ = died_with(4)
    sent = take_group(suspects)
    others = [PendingRow(number) for number in (100, 101)]
    convicted, innocent = suspects.blame([*others, *sent])
    assert (convicted, innocent) == ([], others)
    assert suspects.rows() == {0, 1, 2, 3}


def test_only_one_group_is_tested_at_a_time():
    suspects, _ = died_with(3)
    suspects.blame([PendingRow(9)])
    sent = take_group(suspects)
    assert suspects.next is None
    for row in sent:
        suspects.clear(row)
    assert suspects.next is not None
    assert suspects.next.row == 9


def test_the_search_goes_on_where_an_earlier_attempt_left_it():
    suspects, _ = died_with(64)
    suspects.blame(take_group(suspects))
    suspects.blame(take_group(suspects))
    raw = suspects.to_dict()
    resumed = Suspects()
    resumed.load(raw, [number for number in range(64) if number != 5])
    assert resumed.to_dict()["groups"] == [
        [number for number in group if number != 5] for group in raw["groups"] if group != [5]
    ]
    convicted, deaths = search(resumed, {3})
    assert convicted == [3]
    assert deaths <= MAX_DEATHS_ALONE


def test_deaths_alone_are_remembered():
    suspects, _ = died_with(1)
    suspects.blame(take_group(suspects))
    resumed = Suspects()
    resumed.load(suspects.to_dict(), [0])
    assert search(resumed, {0}) == ([0], MAX_DEATHS_ALONE - 1)
