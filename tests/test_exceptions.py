"""Errors say three things and survive the trip between processes."""

import inspect
import pickle

import pytest

from airflow_arcadia import exceptions, lease_store, preflight
from airflow_arcadia import ray_dashboard as dashboard
from airflow_arcadia.exceptions import ArcadiaError


def test_an_error_says_what_happened_what_runs_and_what_to_do():
    error = ArcadiaError("It broke.", still_running="The worker runs.", what_to_do="Repair it.")
    assert str(error) == "It broke. The worker runs. Repair it."


def test_the_parts_of_an_error_can_stand_on_lines_of_their_own():
    error = ArcadiaError("It broke.", still_running="The worker runs.", what_to_do="Repair it.\nlog line")
    assert exceptions.in_lines(error) == "It broke.\nThe worker runs.\nRepair it.\nlog line"


def test_an_error_says_nothing_of_what_runs_unless_the_site_knows():
    assert str(ArcadiaError("It broke.", what_to_do="Repair it.")) == "It broke. Repair it."


FAMILY = [
    kind
    for module in (exceptions, lease_store, preflight, dashboard)
    for _, kind in inspect.getmembers(module, inspect.isclass)
    if issubclass(kind, ArcadiaError)
]


@pytest.mark.parametrize("kind", sorted(set(FAMILY), key=lambda kind: kind.__name__))
def test_every_error_of_the_family_can_be_pickled(kind: type[ArcadiaError]):
    copy = pickle.loads(pickle.dumps(kind("a", what_to_do="b", still_running="c")))  # noqa: S301 - our own
    assert (type(copy), str(copy)) == (kind, "a c b")
