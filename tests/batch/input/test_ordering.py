"""Rows that begin alike are sent together, rows that may run long first."""

import random
from itertools import pairwise
from pathlib import Path

from airflow_arcadia.batch.input.ordering import order_ready, read_order, write_order
from airflow_arcadia.batch.openai_format import COMPLETIONS, Request, RowError


def order_of(requests: list[Request | RowError], path: Path) -> list[int]:
    write_order(len(requests), requests.__getitem__, path)
    assert order_ready(path, len(requests))
    return list(read_order(path))


def request(prompt: str, **body: object) -> Request:
    return Request("id", COMPLETIONS, {"prompt": prompt, "model": "m", **body})


def test_rows_with_a_common_beginning_are_side_by_side(tmp_path: Path):
    rng = random.Random(1)
    beginnings = ["".join(rng.choices("abcdef ", k=700)) for _ in range(20)]
    rows = [request(beginnings[row % 20] + f"and row {row}") for row in range(1000)]
    order = order_of(rows, tmp_path / "order")
    assert sorted(order) == list(range(1000))
    changes = sum(1 for one, other in pairwise(order) if one % 20 != other % 20)
    assert changes == 19


def test_a_longer_common_beginning_is_closer_than_a_shorter_one(tmp_path: Path):
    rows = [request("s" * 300 + middle * 300 + f"{row}") for row in range(30) for middle in ("a", "b", "c")]
    order = order_of(rows, tmp_path / "order")
    assert len({row % 3 for row in order[:30]}) == 1
    assert len({row % 3 for row in order[30:60]}) == 1


def test_rows_that_may_run_long_come_first_and_those_that_cannot_be_sent_last(tmp_path: Path):
    rows = [
        request("a", max_tokens=5),
        RowError("id", "no_prompt", ""),
        request("b", max_tokens=5000),
        request("c"),
        request("d", max_completion_tokens=600),
    ]
    assert order_of(rows, tmp_path / "order") == [3, 2, 4, 0, 1]


def test_another_model_is_another_cache(tmp_path: Path):
    rows = [request("same " * 20, model=f"m{row % 2}") for row in range(10)]
    order = order_of(rows, tmp_path / "order")
    assert len({row % 2 for row in order[:5]}) == 1


def test_rows_of_one_adapter_are_together_whatever_they_say_and_however_long_they_may_run(tmp_path: Path):
    """An engine has few adapters loaded at a time: each change of them costs."""
    rng = random.Random(2)
    rows = [
        request("".join(rng.choices("abcdef ", k=60)), model=f"adapter-{row % 3}", max_tokens=2 ** (row % 9))
        for row in range(90)
    ]
    order = order_of(rows, tmp_path / "order")
    assert sum(1 for one, other in pairwise(order) if one % 3 != other % 3) == 2


def test_more_rows_than_are_sorted_at_once_come_out_whole(tmp_path: Path):
    rows = [request(f"{row % 97} " * 20) for row in range(70_000)]
    order = order_of(rows, tmp_path / "order")
    assert sorted(order) == list(range(70_000))
    assert sum(1 for one, other in pairwise(order) if one % 97 != other % 97) == 96
    assert [path.name for path in tmp_path.iterdir()] == ["order"]


def test_an_order_that_is_torn_is_not_ready(tmp_path: Path):
    order_of([request("a"), request("b")], tmp_path / "order")
    (tmp_path / "order").write_bytes(b"\0" * 7)
    assert not order_ready(tmp_path / "order", 2)
    assert not order_ready(tmp_path / "none", 2)
