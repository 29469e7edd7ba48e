"""Whether a pod's own batch renews its lease, by what the worker tells: a model's code may make that up."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from airflow_arcadia.launchers.batch_renewal import PROGRESS_AGE, is_due, progressed_at, status_url
from airflow_arcadia.lease import Identity, Lease, Use, Warm

NOW = 1_000_000.0
LEASE = Lease("l", Identity("d", "r", "g"), NOW, NOW, 60.0)


def test_a_worker_is_asked_once_a_renewal_is_late_and_not_before():
    assert not is_due(LEASE, NOW + 19)
    assert is_due(LEASE, NOW + 20)
    assert not is_due(replace(LEASE, released=True), NOW + 20), "a released lease is never renewed"


def test_a_shared_worker_is_asked_for_the_run_that_is_late_although_another_renews():
    uses = (Use("late", NOW, 60.0, 600.0), Use("other", NOW + 19, 3600.0, 600.0))
    lease = replace(LEASE, renewed_at=NOW + 19, duration_s=3600, warm=Warm("k", 1, NOW + 9e4, uses=uses))
    assert not is_due(lease, NOW + 19)
    assert is_due(lease, NOW + 20)


def test_the_last_progress_of_any_worker_counts():
    assert progressed_at([{PROGRESS_AGE: 30.0}, None, {PROGRESS_AGE: 4}], NOW) == NOW - 4
    assert progressed_at([{PROGRESS_AGE: None}, None], NOW) is None
    assert progressed_at([], NOW) is None


@pytest.mark.parametrize(
    "answer",
    [[], "text", 5, {}, {PROGRESS_AGE: True}, {PROGRESS_AGE: "1"}, {PROGRESS_AGE: -5.0}]
    + [{PROGRESS_AGE: float(text)} for text in ("nan", "inf", "-inf")],
)
def test_an_answer_of_another_shape_renews_nothing(answer: Any):
    assert progressed_at([answer], NOW) is None


def test_a_worker_is_asked_at_its_pods_address():
    ports = [{"name": "fastchat", "containerPort": 21003}, {"name": "http", "containerPort": 8000}]
    pod: dict[str, Any] = {"spec": {"containers": [{"name": "worker", "ports": ports}]}, "status": {}}
    assert status_url(pod) is None, "it has no address yet"
    pod["status"]["podIP"] = "10.0.0.7"
    assert status_url(pod) == "http://10.0.0.7:8000/worker_get_status"
    pod["status"]["podIP"] = "fd00::7"
    assert status_url(pod) == "http://[fd00::7]:8000/worker_get_status"
    pod["spec"]["containers"][0].pop("ports")
    assert status_url(pod) is None
