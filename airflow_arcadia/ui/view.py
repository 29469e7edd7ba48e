"""What the page shows, computed from what was read. Pure: times are passed in.

Everything is JSON-safe. Times are seconds since the epoch; a value that could not be read is None, never 0.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from airflow_arcadia.launchers.reaper import SKEW_S, Held
from airflow_arcadia.lease import Lease, Warm

if TYPE_CHECKING:
    from airflow_arcadia.ray_dashboard import ClusterFacts  # every component of Airflow imports this module

RUNNING_STATES = frozenset(
    {"running", "deferred", "queued", "scheduled", "up_for_retry", "up_for_reschedule"}
)
ENDED_STATES = frozenset({"success", "failed", "skipped", "upstream_failed", "removed"})
LAUNCH_OPERATOR = "ArcadiaLaunchWorkerOperator"
BATCH_OPERATOR = "ArcadiaBatchInferenceOperator"
RAY_SENSOR = "ArcadiaRayClusterSensor"
PROVISION_OPERATOR = "ArcadiaProvisionRayClusterOperator"
_STEPS = (
    ("teardown_worker", "tearing down"),
    ("model_ready", "loading the model"),
    ("launch_worker", "launching"),
    ("provision_ray_cluster", "provisioning the Ray cluster"),
    ("check_input", "checking the input"),
    ("reserve", "reserving"),
)
"""Steps of a worker group by the name of their task, last first, and what the worker does meanwhile."""
_METRICS = {
    "vllm:num_requests_running": "running",
    "vllm:num_requests_waiting": "waiting",
    "vllm:kv_cache_usage_perc": "kv_cache_usage",
    "vllm:generation_tokens_total": "generation_tokens",
    "vllm:prompt_tokens_total": "prompt_tokens",
}
"""Gauges and counters of vLLM's ``/metrics`` that the page shows, and their names here."""


@dataclass(frozen=True)
class Task:
    """A task instance as Airflow's database has it.

    :param value: what it returned, where that is read (launches and finished batches).
    :param store: its task state store.
    """

    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    operator: str
    state: str | None
    started_at: float | None = None
    ended_at: float | None = None
    try_number: int = 0
    value: Any = None
    store: Mapping[str, Any] = field(default_factory=dict)

    @property
    def step(self) -> str:
        """Name inside its group."""
        return self.task_id.rpartition(".")[2]

    @property
    def group(self) -> str:
        """What the names of its group's tasks begin with; empty outside of groups."""
        return self.task_id.removesuffix(self.step)

    @property
    def key(self) -> dict[str, Any]:
        """What identifies it in a request."""
        return {
            "dag_id": self.dag_id,
            "run_id": self.run_id,
            "task_id": self.task_id,
            "map_index": self.map_index,
        }


def parse_metrics(text: str) -> dict[str, float]:
    """The engine's numbers out of Prometheus text, summed over its label sets."""
    found: dict[str, float] = {}
    for line in text.splitlines():
        name, _, rest = line.partition("{")
        value = rest.rpartition("} ")[2] if rest else line.partition(" ")[2]
        name = name.partition(" ")[0]
        if (short := _METRICS.get(name)) is None:
            continue
        try:
            found[short] = found.get(short, 0.0) + float(value.split()[0])
        except (ValueError, IndexError):
            continue
    return found


def worker_state(text: str) -> tuple[str | None, str | None]:
    """The worker's state out of its ``/metrics``, and what stands in the way of its being ready."""
    state = re.search(r'^arcadia_worker_status\{status="(\w+)"\} 1(?:\.0)?$', text, re.MULTILINE)
    cause = re.search(r'^arcadia_worker_problem\{cause="((?:[^"\\]|\\.)*)"\} 1', text, re.MULTILINE)
    said = cause[1].replace(r"\"", '"').replace(r"\n", " ").replace(r"\\", "\\") if cause else None
    return state[1] if state else None, said


def worker_of(batch: Task, run: Iterable[Task]) -> Mapping[str, Any] | None:
    """The handle of the worker that the batch's own group launched; None without one.

    :param run: every task of the run, which may have several groups.
    """
    for task in run:
        own = batch.task_id.startswith(task.group) and task.map_index in {-1, batch.map_index}
        if own and task.operator == LAUNCH_OPERATOR and isinstance(task.value, Mapping):
            return task.value
    return None


def cluster(connection: str, name: str, url: str, facts: ClusterFacts | str) -> dict[str, Any]:
    """One Ray cluster; ``facts`` is the reason where it could not be read."""
    shown: dict[str, Any] = {"connection": connection, "name": name, "url": url}
    if isinstance(facts, str):
        return {**shown, "healthy": False, "error": facts}
    return {
        **shown,
        "healthy": all(node.alive for node in facts.nodes),
        "error": None,
        "ray_version": facts.ray_version,
        "python_version": facts.python_version,
        "gpus_total": facts.gpus_total,
        "gpus_free": facts.gpus_free,
        "nodes": [
            {
                "ip": node.ip,
                "head": node.is_head,
                "alive": node.alive,
                "gpus_total": node.gpus_total,
                "gpus_used": node.gpus_used,
            }
            for node in facts.nodes
        ],
    }


def phase(tasks: Sequence[Task], lease: Lease, now: float) -> tuple[str, bool]:
    """What the worker of that lease does, and whether a person should look at it.

    :param tasks: those of the lease's run.
    """
    group = [task for task in tasks if task.task_id.startswith(f"{lease.identity.group}.")]
    states = {task.step: task.state for task in group}
    if states.get("teardown_worker") in {"success", "failed"}:
        return "its teardown has ended, but its lease is still there", True
    if lease.lapsed(now):
        return ("released, ending" if lease.released else "its lease has lapsed"), not lease.released
    for step, what in _STEPS:
        found = [task for task in group if task.step == step or task.step.startswith(f"{step}_")]
        if any(task.state in RUNNING_STATES for task in found):
            return what, False
        if step == "model_ready" and found and all(task.state == "success" for task in found):
            return "ready", False
    failed = [task.step for task in group if task.state == "failed"]
    if failed:
        return f"{failed[0]} failed", True
    return "waiting for its next task", False


def workers(connection: str, held: Iterable[Held], tasks: Sequence[Task], now: float) -> list[dict[str, Any]]:
    """One entry per lease of that connection, with its workers."""
    return [_lease(connection, item, tasks, now) for item in held]


def _lease(connection: str, held: Held, tasks: Sequence[Task], now: float) -> dict[str, Any]:
    shown: dict[str, Any] = {"connection": connection, "lease": held.name, "workers": []}
    if held.lease is None:
        why = "nothing of it is reserved any more" if held.readable else "its lease cannot be read"
        return {**shown, "dag_id": None, "phase": why, "attention": True, "since": held.changed_at or None}
    lease = held.lease
    if lease.warm is not None:
        return shown | _warm(lease, lease.warm, now)
    identity = lease.identity
    run = [task for task in tasks if (task.dag_id, task.run_id) == (identity.dag_id, identity.run_id)]
    what, attention = phase(run, lease, now)
    launches = [
        task for task in run if task.operator == LAUNCH_OPERATOR or task.step.startswith("launch_worker")
    ]
    launched = [(task.value, task.try_number) for task in launches if isinstance(task.value, Mapping)]
    own = [one for one in launched if lease.name in {one[0].get("lease"), one[0].get("run_lease")}]
    shown["workers"] = [_worker(handle, tries, now - lease.created_at) for handle, tries in own]
    return {
        **shown,
        "dag_id": identity.dag_id,
        "run_id": identity.run_id,
        "group": identity.group,
        "map_index": identity.map_index,
        "phase": what,
        "attention": attention,
        "since": lease.created_at,
        "lease_left": lease.expires_at - now,
    }


def _warm(lease: Lease, warm: Warm, now: float) -> dict[str, Any]:
    """A worker that outlives its runs: it belongs to none, and is not leaked while its lease holds."""
    users = [use.user for use in warm.uses if use.expires_at > now]
    if lease.released:
        what = "released, ending"
    elif lease.lapsed(now):
        what = "its warm period has ended"
    elif not warm.handles:
        what = f"launched by the run of {warm.launcher}"
    elif users:
        what = f"ready, shared by {len(users)} runs" if len(users) > 1 else "ready, used by one run"
    else:
        what = "warm, waiting for its next run"
    return {
        "dag_id": None,
        "phase": what,
        # Its worker ends by itself; the rest of it waits for the reaper.
        "attention": not lease.released and now > lease.expires_at + SKEW_S,
        "since": lease.created_at,
        "lease_left": lease.expires_at - now,
        "users": users,
        "workers": [_worker(handle, 1, now - lease.created_at) for handle in warm.handles.values()],
    }


def _worker(handle: Mapping[str, Any], tries: int, held_s: float) -> dict[str, Any]:
    """One worker of a lease.

    :param tries: how often its launch was tried.
    :param held_s: seconds since its lease was reserved.
    """
    gpus = handle.get("num_gpus")
    return {
        "name": handle.get("name"),
        "launcher": handle.get("launcher"),
        "url": handle.get("url"),
        "model": handle.get("served_model_name"),
        "num_gpus": gpus,
        "shared": bool(handle.get("run_lease")),
        "gpu_hours": gpus * max(held_s, 0.0) / 3600 if gpus is not None else None,
        "restarts": max(tries - 1, 0),
        "state": None,
        "reason": None,
        "metrics": None,
    }


def batch(task: Task, now: float, told: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """One batch task: how far it is, or what it did.

    :param told: what the worker says of a batch that it runs itself.
    """
    summary = task.value if isinstance(task.value, Mapping) else None
    stored = dict(task.store.get("progress") or {})
    history = stored.pop("history", [])
    progress: dict[str, Any] | None = dict((told or {}).get("progress") or {}) or stored or None
    if summary:
        rows = {"done": summary.get("rows"), "total": summary.get("rows")}
        progress = {**rows, "ok": summary.get("ok"), "failed": summary.get("failed"), "eta_s": 0.0}
        progress |= {"tokens_per_s": summary.get("tokens_per_s"), "rows_per_s": None}
    failed = (progress or {}).get("failed") or 0
    ended = task.state in ENDED_STATES
    return {
        **task.key,
        "state": task.state,
        "attempt": task.try_number,
        "batch_id": task.store.get("batch_id"),
        "started": task.started_at,
        "ended": task.ended_at if ended else None,
        "seconds": ((task.ended_at if ended else now) or now) - task.started_at if task.started_at else None,
        "progress": progress,
        "history": history,
        "summary": summary,
        "attention": task.state == "failed" or failed > 0,
    }


def timeline(
    task: Task, run: Sequence[Task], history: Sequence[Sequence[float]] = ()
) -> list[dict[str, Any]]:
    """The steps of the batch's run in the order they started, with their times.

    :param run: every task of the run.
    :param history: points of :class:`~airflow_arcadia.batch.progress.History`.
    """
    own = [one for one in run if one.group == task.group and one.step != "teardown_worker"]
    own = [one for one in own if one.map_index in {-1, task.map_index}]
    until = task.ended_at or task.started_at or 0
    steps: list[dict[str, Any]] = [
        {"step": one.step, "state": one.state, "started": one.started_at, "ended": one.ended_at}
        for one in own
        if one.started_at is not None and one.started_at <= until
    ]
    if (first := first_rows_at(history)) is not None:
        steps.append({"step": "first rows", "state": "success", "started": first, "ended": first})
    return sorted(steps, key=lambda step: float(step["started"]))


def first_rows_at(history: Sequence[Sequence[float]]) -> float | None:
    """When the first rows were seen to be done; None before that."""
    before = history[0][1] if history and history[0][2] == 0 else 0
    return next((point[0] for point in history if point[1] > before), None)


def held_gpus(leases: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The strip on top: GPUs held now and by whom, and what looks like a leak."""
    leases = list(leases)
    holders = [
        {
            "dag_id": lease["dag_id"],
            "run_id": lease.get("run_id"),
            "gpus": sum(worker["num_gpus"] or 0 for worker in own),
            "since": lease["since"],
        }
        for lease in leases
        # A warm worker is counted once: not with every run that uses it.
        if (own := [worker for worker in lease["workers"] if not worker.get("shared")])
    ]
    return {
        "gpus": sum(holder["gpus"] for holder in holders),
        "holders": holders,
        "leaks": [lease["lease"] for lease in leases if lease["attention"] and _past(lease)],
    }


def _past(lease: Mapping[str, Any]) -> bool:
    left = lease.get("lease_left")
    return left is None or left <= 0
