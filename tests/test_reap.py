"""The reaper's command line: which connections, what it says, and how it exits."""

from __future__ import annotations

import importlib
import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import tomllib

from airflow_arcadia import reap
from airflow_arcadia.launchers.reaper import Reaped, Report
from airflow_arcadia.lease import Identity
from airflow_arcadia.lease_store import LeaseStore
from tests.conftest import ROOT


@pytest.fixture
def leases(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> LeaseStore:
    root = tmp_path / "leases"
    extra = {"arcadia_config_yaml": "rayClusters: []", "state_dir": str(root)}
    connection = json.dumps({"conn_type": "arcadia", "extra": extra})
    monkeypatch.setenv("AIRFLOW_CONN_ARCADIA_DEFAULT", connection)
    monkeypatch.setattr(reap, "run_state", lambda identity: "running")
    monkeypatch.setattr(reap, "connection_ids", lambda: ["arcadia_default"])
    return LeaseStore(root)


def reserve(store: LeaseStore, run_id: str, ago: float) -> str:
    return store.reserve(Identity("dag", run_id, "worker"), time.time() - ago, 600).name


def test_a_sweep_ends_what_lapsed_and_says_so(leases: LeaseStore, capsys: pytest.CaptureFixture[str]):
    lapsed, alive = reserve(leases, "old", 5000), reserve(leases, "new", 1)
    assert reap.main(["--dry-run"]) == 0
    assert f"would end {lapsed}: its lease lapsed" in capsys.readouterr().out
    assert sorted(leases.names()) == sorted([lapsed, alive])
    assert reap.main([]) == 0
    said = capsys.readouterr().out
    assert f"arcadia_default: ended {lapsed}" in said
    assert "1 leases ended, 1 kept, 0 GPUs freed" in said
    assert leases.names() == [alive]


def test_one_run_is_ended_at_once_and_no_other(leases: LeaseStore):
    ended, other = reserve(leases, "timed-out", 1), reserve(leases, "other", 1)
    assert reap.main(["--dag-id", "dag", "--run-id", "timed-out"]) == 0
    assert leases.names() == [other]
    assert ended != other


def test_what_a_run_that_was_cleared_since_has_reserved_is_kept(leases: LeaseStore):
    ended, cleared = reserve(leases, "ended", 60), reserve(leases, "cleared", 1)
    for run_id in ("ended", "cleared"):
        arguments = ["--dag-id", "dag", "--run-id", run_id, "--reserved-before", str(time.time() - 30)]
        assert reap.main(arguments) == 0
    assert leases.names() == [cleared]
    assert ended != cleared


def test_a_run_needs_both_of_its_names(leases: LeaseStore):
    with pytest.raises(SystemExit):
        reap.main(["--dag-id", "dag"])
    with pytest.raises(SystemExit):
        reap.main(["--task-id", "t"])


def test_what_one_teardown_was_there_for_is_ended_and_no_other_worker_of_its_run(
    leases: LeaseStore, monkeypatch: pytest.MonkeyPatch
):
    ended = leases.reserve(Identity("dag", "run", "one", 3), time.time(), 600).name
    other = leases.reserve(Identity("dag", "run", "two", 3), time.time(), 600).name
    task = SimpleNamespace(group="one", arcadia_conn_id="arcadia_default")
    monkeypatch.setattr(reap, "_task_of_run", lambda *names: task if names == ("dag", "run", "t") else None)
    arguments = ["--dag-id", "dag", "--run-id", "run", "--map-index", "3", "--task-id"]
    assert reap.main([*arguments, "t"]) == 0
    assert leases.names() == [other]
    assert ended != other


@pytest.mark.parametrize("group", [None, "", "{{ params.group }}"])
def test_a_teardown_whose_lease_the_dag_does_not_tell_is_left_to_the_lease(
    leases: LeaseStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], group: str | None
):
    task = SimpleNamespace(group=group, arcadia_conn_id="arcadia_default")
    monkeypatch.setattr(reap, "_task_of_run", lambda *_: task)
    assert reap.main(["--dag-id", "d", "--run-id", "r", "--task-id", "t"]) == 1
    assert "cannot be told from the DAG. What it owns runs until the lease lapses" in capsys.readouterr().out


def test_a_connection_that_is_not_there_is_named_and_makes_it_exit_with_1(
    leases: LeaseStore, capsys: pytest.CaptureFixture[str]
):
    lapsed = reserve(leases, "old", 5000)
    assert reap.main(["--conn-id", "nowhere", "--conn-id", "arcadia_default"]) == 1
    said = capsys.readouterr().out
    assert "nowhere: Airflow has no connection 'nowhere'" in said
    assert f"ended {lapsed}" in said


def test_what_is_left_is_said():
    report = Report(
        [Reaped("l", "its lease lapsed 9 s ago", 2, 1.5, ("Pod ns/p",))], ["k"], {"e": "Forbidden."}
    )
    assert reap.lines_of("c", report) == [
        "c: ended l: its lease lapsed 9 s ago; 2 GPUs, 3.00 GPU-hours; still there: Pod ns/p",
        "c: e was not dealt with: Forbidden.",
        "c: 1 leases ended, 1 kept, 0 GPUs freed, 3.00 GPU-hours since their last renewals",
    ]


def test_workers_that_wait_for_their_next_run_are_told_apart_from_what_is_leaked():
    said = reap.lines_of("c", Report(kept=["held", "idle"], warm=["idle"]))
    assert said == [
        "c: 0 leases ended, 2 kept (1 warm), 0 GPUs freed, 0.00 GPU-hours since their last renewals"
    ]


def test_the_listeners_are_an_entry_point_that_is_there():
    """Airflow ignores the plugins of provider_info where it discovers providers lazily."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (path,) = (
        value
        for value in project["project"]["entry-points"]["airflow.plugins"].values()
        if "listeners" in value
    )
    module, _, name = path.partition(":")
    plugin = getattr(importlib.import_module(module), name)
    assert [listener.__name__.rpartition(".")[2] for listener in plugin.listeners] == ["runs", "tasks"]
