"""A request to answer failed rows again is carried out once."""

from __future__ import annotations

import pytest

from airflow_arcadia.operators._failed_rows import CONF_KEY, is_due, requested, task_name, with_request


def test_a_request_is_found_by_its_own_task_alone():
    conf = with_request({"limit": 3}, "worker.answer", "abc")
    assert conf["limit"] == 3
    assert requested(conf, "worker.answer") == "abc"
    assert requested(conf, "worker.other") is None


def test_a_second_request_leaves_that_of_another_task():
    conf = with_request(with_request(None, "a", "1"), task_name("b", 2), "2")
    assert (requested(conf, "a"), requested(conf, "b[2]")) == ("1", "2")


@pytest.mark.parametrize("conf", [None, {}, {CONF_KEY: None}, {CONF_KEY: "answer"}, {CONF_KEY: ["answer"]}])
def test_a_configuration_without_a_request_asks_for_nothing(conf):
    assert requested(conf, "answer") is None


@pytest.mark.parametrize(
    ("request_", "completion", "due"),
    [
        (None, "abc", False),
        ("abc", "abc", True),
        ("abc", "another", False),  # carried out, and the task was cleared again
        ("abc", None, True),  # an attempt at it was interrupted
        ("", None, True),  # the batch ended before all rows were done
        ("", "abc", False),
    ],
)
def test_a_request_is_due_until_the_batch_has_another_completion(request_, completion, due):
    assert is_due(request_, completion) is due
