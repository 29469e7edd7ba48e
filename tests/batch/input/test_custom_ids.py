"""Duplicates are counted exactly, in memory that does not grow with the batch."""

import random

import pytest

from airflow_arcadia.batch.input import custom_ids
from airflow_arcadia.batch.input.custom_ids import CustomIds


@pytest.mark.parametrize("in_memory", [7, 1000, 10**6])
def test_the_count_is_exact_however_often_it_is_spilt(monkeypatch: pytest.MonkeyPatch, in_memory: int):
    monkeypatch.setattr(custom_ids, "_IN_MEMORY", in_memory)
    rng = random.Random(2)
    ids = [f"id-{rng.randrange(3000)}" for _ in range(5000)]
    counted = CustomIds()
    for one in ids:
        counted.add(one)
    assert counted.duplicates() == len(ids) - len(set(ids))
