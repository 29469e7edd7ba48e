"""What a batch may be asked to do."""

from typing import Any

import pytest

from airflow_arcadia.batch import BatchSpec
from airflow_arcadia.exceptions import ArcadiaConfigError


@pytest.mark.parametrize(
    ("fraction", "rows", "allowed"),
    [(0.29, 100, 29), (0.57, 100, 57), (0.05, 30, 1), (0.0, 100, 0), (1.0, 7, 7), (1 / 3, 2, 0)],
)
def test_a_share_of_the_rows_is_as_many_as_it_reads(fraction: float, rows: int, allowed: int):
    spec = BatchSpec("in", "out", "m", max_failed_fraction=fraction)
    assert spec.failed_rows_allowed(rows) == allowed


@pytest.mark.parametrize(
    "parameters",
    [{"seed": 2**70}, {"stop": {"a", "b"}}, {"suffix": "\ud800"}, {"logit_bias": {1: 2.0}}],
    ids=["a long integer", "a set", "half a character", "a number as key"],
)
def test_parameters_that_are_not_json_are_refused(parameters: dict[str, Any]):
    with pytest.raises(ArcadiaConfigError, match="parameters cannot be sent as JSON"):
        BatchSpec("in", "out", "m", parameters)


def test_a_spec_goes_through_json_and_back():
    spec = BatchSpec("in", "out", "m", {"seed": 1}, columns_as_parameters=["seed"], limit=3)
    assert BatchSpec(**spec.to_dict()) == BatchSpec(
        "in", "out", "m", {"seed": 1}, columns_as_parameters=["seed"], limit=3
    )
