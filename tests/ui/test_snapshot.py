"""One picture from all sources: what is away is said, and never breaks the rest."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_arcadia.launchers.reaper import Held
from airflow_arcadia.lease import Identity, Lease
from airflow_arcadia.ui import database, snapshot
from airflow_arcadia.ui.cache import Sources
from airflow_arcadia.ui.snapshot import Snapshots
from airflow_arcadia.ui.view import Task

NOW = 1000.0
HANDLE = {"name": "w", "launcher": "process", "url": "http://w", "served_model_name": "m", "num_gpus": 2}
LEASE = Lease("l", Identity("dag", "run", "g"), created_at=NOW - 60, renewed_at=NOW)


def task(name: str, state: str, value: Any = None) -> Task:
    return Task("dag", "run", f"g.{name}", -1, "O", state, started_at=NOW - 50, value=value)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Sources that answer; a test replaces one."""
    answers: dict[str, Any] = {
        "leases": lambda: [Held("l", LEASE, NOW)],
        "clusters": lambda: [("two", "http://ray", "it does not answer")],
        "metrics": lambda: (1.0, {"running": 3.0, "generation_tokens": 100.0}),
        "tasks": lambda: [task("launch_worker", "success", HANDLE), task("model_ready", "success")],
    }
    monkeypatch.setattr(snapshot, "connection_ids", lambda: ["c"])
    monkeypatch.setattr(database, "batch_tasks", lambda: [task("answer", "running")])
    monkeypatch.setattr(database, "run_tasks", lambda runs: answers["tasks"]())
    monkeypatch.setattr(snapshot, "ask_leases", lambda conn_id: answers["leases"]())
    monkeypatch.setattr(snapshot, "ask_clusters", lambda conn_id: answers["clusters"]())
    monkeypatch.setattr(snapshot, "ask_metrics", lambda url: answers["metrics"]())
    return answers


def snapshots() -> Snapshots:
    return Snapshots(Sources(ttl_s=0), now=lambda: NOW)


def test_everything_is_in_one_picture(world):
    taken = snapshots().take()
    assert taken["held"]["gpus"] == 2
    (lease,) = taken["leases"]
    assert lease["phase"] == "ready"
    assert lease["workers"][0]["metrics"]["running"] == 3.0
    assert taken["clusters"][0]["error"] == "it does not answer"
    assert taken["away"] == []


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ("leases", "c: leases"),
        ("clusters", "c: Ray clusters"),
        ("metrics", "worker w"),
        ("tasks", "Airflow: tasks"),
    ],
)
def test_a_source_that_is_away_is_named_and_the_rest_is_shown(world, source, named):
    def away() -> None:
        raise OSError("no answer")

    world[source] = away
    taken = snapshots().take()
    assert {"source": named, "error": "no answer"} in taken["away"]
    assert len(taken["batches"]) == 1


def test_tokens_per_second_are_counted_between_two_readings_of_the_engine(world):
    taken = snapshots()
    taken.take()
    world["metrics"] = lambda: (3.0, {"generation_tokens": 300.0})
    (lease,) = taken.take()["leases"]
    assert lease["workers"][0]["metrics"]["tokens_per_s"] == 100.0
    (lease,) = taken.take()["leases"]  # the same reading again
    assert lease["workers"][0]["metrics"]["tokens_per_s"] == 100.0
