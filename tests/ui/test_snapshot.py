"""One picture from all sources: what is away is said, and never breaks the rest."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from airflow_arcadia.exceptions import ArcadiaConfigError, LeaseError
from airflow_arcadia.launchers.reaper import Held
from airflow_arcadia.lease import Identity, Lease
from airflow_arcadia.ui import cache, database, snapshot
from airflow_arcadia.ui.cache import Sources
from airflow_arcadia.ui.snapshot import Snapshots, connection_of, progress_in
from airflow_arcadia.ui.view import Task

NOW = 1000.0
PROGRESS = {"done": 4, "total": 9, "ok": 4, "failed": 0, "rows_per_s": 2.0, "tokens_per_s": 8.0, "eta_s": 2.5}
HANDLE = {
    "name": "w",
    "lease": "l",
    "launcher": "process",
    "url": "http://w",
    "served_model_name": "m",
    "num_gpus": 2,
}
LEASE = Lease("l", Identity("dag", "run", "g"), created_at=NOW - 60, renewed_at=NOW)


def task(name: str, state: str, value: Any = None) -> Task:
    operator = "ArcadiaLaunchWorkerOperator" if name == "launch_worker" else "O"
    return Task("dag", "run", f"g.{name}", -1, operator, state, started_at=NOW - 50, value=value)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Sources that answer; a test replaces one."""
    answers: dict[str, Any] = {
        "batches": lambda: [task("answer", "running")],
        "leases": lambda: [Held("l", LEASE, NOW)],
        "clusters": lambda: [("two", "http://ray", "it does not answer")],
        "metrics": lambda: (1.0, {"running": 3.0, "generation_tokens": 100.0}, "ready", None),
        "batch": lambda: {"progress": PROGRESS},
        "tasks": lambda: [task("launch_worker", "success", HANDLE), task("model_ready", "success")],
    }
    monkeypatch.setattr(snapshot, "connection_ids", lambda: ["c"])
    monkeypatch.setattr(database, "batch_tasks", lambda *_: answers["batches"]())
    monkeypatch.setattr(database, "batch_task", lambda *key: answers["batches"]()[0])
    monkeypatch.setattr(database, "run_tasks", lambda runs: answers["tasks"]())
    monkeypatch.setattr(snapshot, "ask_leases", lambda conn_id: answers["leases"]())
    monkeypatch.setattr(snapshot, "ask_clusters", lambda conn_id: answers["clusters"]())
    monkeypatch.setattr(snapshot, "ask_metrics", lambda url: answers["metrics"]())
    monkeypatch.setattr(snapshot, "ask_batch", lambda handle, batch_id: answers["batch"]())
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
    world["metrics"] = lambda: (3.0, {"generation_tokens": 300.0}, "ready", None)
    (lease,) = taken.take()["leases"]
    assert lease["workers"][0]["metrics"]["tokens_per_s"] == 100.0
    (lease,) = taken.take()["leases"]  # the same reading again
    assert lease["workers"][0]["metrics"]["tokens_per_s"] == 100.0


def deferred() -> Task:
    return Task("dag", "run", "g.answer", -1, "O", "deferred", NOW - 50, store={"batch_id": "batch_1"})


def test_a_batch_that_its_worker_runs_shows_what_the_worker_tells(world):
    world["batches"] = lambda: [deferred()]
    taken = snapshots()
    (batch,) = taken.take()["batches"]
    assert (batch["progress"]["done"], batch["progress"]["total"]) == (4, 9)
    shown = taken.batch("dag", "run", "g.answer", -1)
    assert shown is not None
    assert shown["history"] == [[NOW, 4, 2.0, 8.0]] * 2
    assert [step["step"] for step in shown["timeline"]][-1] == "first rows"


def test_a_worker_that_does_not_tell_of_its_batch_is_named(world):
    def away() -> None:
        raise OSError("refused")

    world["batches"], world["batch"] = lambda: [deferred()], away
    taken = snapshots().take()
    assert {"source": "batch g.answer of run", "error": "refused"} in taken["away"]
    assert taken["batches"][0]["progress"] is None


def test_a_worker_that_does_not_answer_says_so_as_its_reason(world):
    def away() -> None:
        raise OSError("refused")

    world["metrics"] = away
    (lease,) = snapshots().take()["leases"]
    assert lease["workers"][0]["reason"] == "it does not answer"


def test_a_hung_worker_says_why(world):
    world["metrics"] = lambda: (1.0, {}, "hung", "no token for 60 s")
    (lease,) = snapshots().take()["leases"]
    assert (lease["workers"][0]["state"], lease["workers"][0]["reason"]) == ("hung", "no token for 60 s")


def test_all_sources_together_may_take_as_long_as_one(world, monkeypatch):
    """Each question waits for what is left of the reader's time: the page never waits for their sum."""
    waited: list[float] = []
    clock = [0.0]

    def wait(futures: Any, timeout: float) -> None:
        waited.append(timeout)
        clock[0] += timeout

    monkeypatch.setattr(cache, "wait", wait)
    Snapshots(Sources(ttl_s=0, wait_s=1.5, clock=lambda: clock[0]), now=lambda: NOW).take()
    assert len(waited) > 2
    assert sum(waited) == 1.5


def test_the_progress_of_another_versions_worker_is_read_as_far_as_it_is_known():
    told = progress_in({"progress": {**PROGRESS, "done": "4", "of_a_later_version": 1}})
    assert told == {**PROGRESS, "prompt_tokens": 0, "completion_tokens": 0}
    assert progress_in({"progress": None}) is progress_in({}) is None


@pytest.mark.parametrize("told", [{}, {**PROGRESS, "done": "many"}, {"done": 1}, [1], "half"])
def test_a_progress_that_makes_no_sense_is_an_error_of_its_source(told: object):
    with pytest.raises(ArcadiaConfigError, match="progress"):
        progress_in({"progress": told})


def test_a_connection_that_cannot_be_read_does_not_hide_where_a_lease_is(monkeypatch: pytest.MonkeyPatch):
    leases = {"away": LeaseError("It is away.", what_to_do="Wait."), "other": None, "mine": LEASE}

    class Hook:
        def __init__(self, conn_id: str) -> None:
            self._found = leases[conn_id]
            self.leases = self

        def read(self, name: str) -> Lease | None:
            if isinstance(self._found, Exception):
                raise self._found
            return self._found

    monkeypatch.setattr(snapshot, "ArcadiaHook", Hook)
    monkeypatch.setattr(snapshot, "connection_ids", lambda: list(leases))
    assert connection_of("l") == "mine"
    leases["mine"] = None
    with pytest.raises(LeaseError, match="away"):
        connection_of("l")
    del leases["away"]
    assert connection_of("l") is None


def test_the_snapshot_is_json(world):
    world["batches"] = lambda: [deferred()]
    json.dumps(snapshots().take())


def test_fifty_open_pages_cost_what_one_does(world):
    asked: Counter[str] = Counter()

    def counted(name: str, ask: Callable[[], Any]) -> Callable[[], Any]:
        def count() -> Any:
            asked[name] += 1
            return ask()

        return count

    world["batches"] = lambda: [deferred()]
    for name, ask in list(world.items()):
        world[name] = counted(name, ask)
    shared = Snapshots(Sources(ttl_s=1000), now=lambda: NOW)
    with ThreadPoolExecutor(50) as pages:
        seen = list(pages.map(lambda _: shared.take(), range(50)))
    assert asked == dict.fromkeys(["batches", "leases", "clusters", "metrics", "tasks", "batch"], 1)
    assert [len(taken["leases"]) for taken in seen] == [1] * 50
    tabs = [shared.batch("dag", "run", "g.answer", -1) for _ in range(50)]
    assert len(tabs) == 50
    assert asked["batches"] == asked["tasks"] == 2  # the overview's, and the tabs' one batch
