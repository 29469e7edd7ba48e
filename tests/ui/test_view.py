"""What the page shows, from what was read."""

from __future__ import annotations

import json
from typing import Any

import pytest

from airflow_arcadia.launchers.reaper import Held
from airflow_arcadia.lease import Identity, Lease, Use, Warm
from airflow_arcadia.ray_dashboard import ClusterFacts, RayNode
from airflow_arcadia.ui import view
from airflow_arcadia.ui.view import Task

NOW = 10_000.0
LEASE = Lease("qwen-1", Identity("dag", "run", "qwen"), created_at=NOW - 60, renewed_at=NOW - 10)
HANDLE = {
    "name": "qwen-1",
    "lease": "qwen-1",
    "launcher": "process",
    "url": "http://127.0.0.1:1",
    "served_model_name": "qwen",
    "num_gpus": 2,
}


def task(name: str, state: str | None, **more: object) -> Task:
    return Task("dag", "run", f"qwen.{name}", -1, "Operator", state, started_at=NOW - 50, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("states", "shown", "attention"),
    [
        ({"reserve": "running"}, "reserving", False),
        ({"reserve": "success", "provision_ray_cluster": "running"}, "provisioning the Ray cluster", False),
        ({"launch_worker": "success", "model_ready": "deferred"}, "loading the model", False),
        ({"launch_worker_1": "success", "model_ready_1": "deferred"}, "loading the model", False),
        ({"launch_worker": "success", "model_ready": "success"}, "ready", False),
        ({"model_ready": "success", "teardown_worker": "running"}, "tearing down", False),
        ({"launch_worker": "failed"}, "launch_worker failed", True),
        ({"reserve": "success"}, "waiting for its next task", False),
        ({"teardown_worker": "success"}, "its teardown has ended, but its lease is still there", True),
    ],
)
def test_the_phase_follows_from_the_states_of_the_groups_tasks(states, shown, attention):
    tasks = [task(name, state) for name, state in states.items()]
    assert view.phase(tasks, LEASE, NOW) == (shown, attention)


def test_tasks_of_another_group_of_the_run_do_not_count():
    other = Task("dag", "run", "qwen2.launch_worker", -1, "Operator", "running")
    assert view.phase([other], LEASE, NOW) == ("waiting for its next task", False)


def test_a_lapsed_lease_needs_attention_and_a_released_one_does_not():
    assert view.phase([], LEASE, LEASE.expires_at + 1) == ("its lease has lapsed", True)
    assert view.phase([], LEASE.release(), NOW) == ("released, ending", False)


def test_gpus_are_counted_by_holder_and_a_lease_past_its_time_is_named():
    launched = task("launch_worker", "success", value=HANDLE)
    healthy = view.workers("c", [Held("qwen-1", LEASE, NOW)], [launched, task("model_ready", "success")], NOW)
    gone = view.workers("c", [Held("old", None, NOW - 5000)], [], NOW)
    strip = view.held_gpus([*healthy, *gone])
    assert strip["gpus"] == 2
    assert strip["holders"] == [{"dag_id": "dag", "run_id": "run", "gpus": 2, "since": NOW - 60}]
    assert strip["leaks"] == ["old"]
    json.dumps([healthy, gone, strip])


def test_a_running_batch_shows_its_progress_and_a_finished_one_its_summary():
    running = task("answer", "running", store={"progress": {"done": 5, "total": 9, "failed": 0}})
    assert view.batch(running, NOW)["progress"]["done"] == 5
    assert view.batch(running, NOW)["seconds"] == 50
    summary = {"rows": 9, "ok": 8, "failed": 1, "tokens_per_s": 7.5, "output": "o.jsonl"}
    finished = view.batch(task("answer", "success", ended_at=NOW - 20, value=summary), NOW)
    assert (finished["progress"]["done"], finished["progress"]["failed"]) == (9, 1)
    assert finished["attention"]
    assert finished["seconds"] == 30


def test_a_batch_that_has_not_told_anything_has_no_numbers():
    shown = view.batch(task("answer", "running"), NOW)
    assert shown["progress"] is None
    assert not shown["attention"]


def test_the_timeline_has_the_steps_in_their_order():
    batch = task("answer", "success", ended_at=NOW)
    before = Task("dag", "run", "qwen.reserve", -1, "O", "success", started_at=NOW - 90, ended_at=NOW - 89)
    never = Task("dag", "run", "qwen.extra", -1, "O", None)
    other = Task("dag", "run", "qwen2.reserve", -1, "O", "success", started_at=NOW - 80, ended_at=NOW - 79)
    steps = view.timeline(batch, [batch, before, never, other], [[NOW - 45, 0, 0, 0], [NOW - 40, 2, 1, 1]])
    assert [step["step"] for step in steps] == ["reserve", "answer", "first rows"]
    assert steps[-1]["started"] == NOW - 40


def test_a_cluster_that_cannot_be_read_says_why_and_has_no_numbers():
    shown = view.cluster("c", "two", "http://h:8265", "it does not answer")
    where = {"connection": "c", "name": "two", "url": "http://h:8265"}
    assert shown == {**where, "healthy": False, "error": "it does not answer"}
    facts = ClusterFacts("2.60.0", "3.11.7", (RayNode("a", "10.0.0.1", True, True, 2.0, 1.0),))
    shown = view.cluster("c", "two", "http://h:8265", facts)
    assert (shown["gpus_free"], shown["healthy"]) == (1.0, True)
    dead = RayNode("b", "10.0.0.2", False, False, 2.0, 0.0)
    assert not view.cluster("c", "two", "u", ClusterFacts("2", "3", (*facts.nodes, dead)))["healthy"]


def test_metrics_are_summed_over_their_labels_and_unknown_lines_are_left_out():
    text = """# HELP vllm:num_requests_running …
vllm:num_requests_running{engine="0",model_name="a} b"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 2.0
vllm:kv_cache_usage_perc{engine="0"} 0.25
vllm:generation_tokens_total{engine="0"} nonsense
process_cpu_seconds_total 1.5
"""
    assert view.parse_metrics(text) == {"running": 5.0, "kv_cache_usage": 0.25}


def warm_lease(*users: str, handles: bool = True) -> Lease:
    who = Identity("", "0123456789abcdef", "warm-qwen", 0)
    uses = tuple(Use(user, NOW - 10, 3600.0, 600.0) for user in users)
    launched = {"warm-qwen-1": HANDLE | {"name": "warm-qwen-1", "lease": "warm-qwen-1"}} if handles else {}
    warm = Warm("0123456789abcdef", 1, NOW + 9000, NOW + 590, uses, "qwen-1", launched)
    return Lease("warm-qwen-1", who, NOW - 60, NOW - 10, 600.0, warm=warm)


def shown_warm(lease: Lease, now: float = NOW) -> dict[str, Any]:
    (shown,) = view.workers("c", [Held(lease.name, lease, NOW)], [], now)
    return shown


@pytest.mark.parametrize(
    ("lease", "phase"),
    [
        (warm_lease(), "warm, waiting for its next run"),
        (warm_lease("qwen-1"), "ready, used by one run"),
        (warm_lease("qwen-1", "qwen-2"), "ready, shared by 2 runs"),
        (warm_lease("qwen-1", handles=False), "launched by the run of qwen-1"),
        (warm_lease().release(), "released, ending"),
    ],
)
def test_a_warm_worker_is_shown_as_warm_and_not_as_leaked(lease: Lease, phase: str):
    shown = shown_warm(lease)
    assert (shown["phase"], shown["attention"], shown["dag_id"]) == (phase, False, None)
    assert view.held_gpus([shown])["leaks"] == []


def test_a_warm_worker_that_is_there_long_after_its_time_needs_attention():
    lease = warm_lease()
    assert not shown_warm(lease, lease.expires_at + 60)["attention"]
    late = shown_warm(lease, lease.expires_at + 130)
    assert (late["phase"], late["attention"]) == ("its warm period has ended", True)


def test_the_gpus_of_a_shared_worker_are_counted_once():
    shared = HANDLE | {"name": "warm-qwen-1", "lease": "warm-qwen-1", "run_lease": "qwen-1"}
    run = view.workers(
        "c", [Held("qwen-1", LEASE, NOW)], [task("launch_worker", "success", value=shared)], NOW
    )
    held = view.held_gpus([*run, shown_warm(warm_lease("qwen-1"))])
    assert (held["gpus"], len(held["holders"])) == (2, 1)
    assert held["holders"][0]["dag_id"] is None


@pytest.mark.parametrize(
    ("history", "first"),
    [
        ([], None),
        ([[1.0, 0, 0.0, 0.0]], None),
        ([[1.0, 3, 1.0, 5.0]], 1.0),
        ([[1.0, 40, 0.0, 0.0], [2.0, 40, 0.0, 0.0], [3.0, 41, 1.0, 5.0]], 3.0),  # 40 of an earlier attempt
    ],
)
def test_first_rows_are_those_of_this_attempt(history, first):
    assert view.first_rows_at(history) == first


def test_the_workers_own_state_and_its_reason_are_read_from_its_metrics():
    text = (
        'arcadia_worker_status{status="starting"} 0\narcadia_worker_status{status="hung"} 1\n'
        'arcadia_worker_problem{cause="no \\"token\\" for 60 s"} 1\n'
    )
    assert view.worker_state(text) == ("hung", 'no "token" for 60 s')
    assert view.worker_state("vllm:x 1\n") == (None, None)


def test_the_worker_of_a_batch_is_that_of_its_own_group():
    batch = task("answer", "deferred")
    launch = "ArcadiaLaunchWorkerOperator"
    other = Task("dag", "run", "qwen2.launch_worker", -1, launch, "success", value={"name": "other"})
    own = Task("dag", "run", "qwen.launch_worker", -1, launch, "success", value=HANDLE)
    assert view.worker_of(batch, [other, own]) == HANDLE
    assert view.worker_of(batch, [other]) is None


def test_gpu_hours_and_restarts_are_counted_for_each_worker():
    launched = task("launch_worker", "success", value=HANDLE, try_number=3)
    (lease,) = view.workers("c", [Held("qwen-1", LEASE, NOW)], [launched], NOW)
    (worker,) = lease["workers"]
    assert worker["restarts"] == 2
    assert worker["gpu_hours"] == pytest.approx(2 * 60 / 3600)


def test_a_worker_is_shown_once_although_the_task_that_waits_for_it_returns_it_too():
    run = [task("launch_worker", "success", value=HANDLE), task("model_ready", "success", value=HANDLE)]
    (lease,) = view.workers("c", [Held("qwen-1", LEASE, NOW)], run, NOW)
    assert [worker["name"] for worker in lease["workers"]] == ["qwen-1"]
