"""Whether a pod's own batch renews its lease, by what the worker tells: a model's code may make that up."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from airflow_arcadia.kubernetes.kinds import LEASE_LABEL, WORKER_LABEL
from airflow_arcadia.launchers.batch_renewal import (
    PROGRESS_AGE,
    is_due,
    lease_of,
    progressed_at,
    renews,
    status_url,
)
from airflow_arcadia.lease import Identity, Lease, Owned, Use, Warm

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


def test_progress_counts_from_when_the_worker_was_asked():
    assert progressed_at({PROGRESS_AGE: 4}, NOW) == NOW - 4
    assert progressed_at({PROGRESS_AGE: None}, NOW) is None


@pytest.mark.parametrize(
    "answer",
    [None, [], "text", 5, {}, {PROGRESS_AGE: True}, {PROGRESS_AGE: "1"}, {PROGRESS_AGE: -5.0}]
    + [{PROGRESS_AGE: float(text)} for text in ("nan", "inf", "-inf")],
)
def test_an_answer_of_another_shape_is_no_progress(answer: Any):
    assert progressed_at(answer, NOW) is None


def test_progress_after_the_last_renewal_renews_once_however_late_the_answers_come():
    assert renews(LEASE, NOW + 20)
    renewed = LEASE.renew(NOW + 20)
    for later in (0.0, 0.5, 2.4):
        assert not renews(renewed, NOW + 20 + later), "the same progress, by another answer"
    assert renews(renewed, NOW + 30)
    assert not renews(LEASE, None)


def test_a_pod_is_that_of_the_lease_it_carries_or_whose_worker_it_serves():
    worker = Owned("worker", "l", "custom_resource", {"worker": "theirs"})
    leases = [replace(LEASE, name="other"), replace(LEASE, owned=(worker,))]

    def found(**labels: str) -> str | None:
        keys = {"lease": LEASE_LABEL, "worker": WORKER_LABEL}
        return lease_of({"metadata": {"labels": {keys[k]: v for k, v in labels.items()}}}, leases)

    assert found(lease="l", worker="x") == "l"
    assert found(lease="another-run", worker="theirs") is None
    assert found(worker="theirs") == "l"
    assert found(worker="somebody-elses") is None
    assert found() is None


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
