"""One picture of clusters, workers and batches, read from all sources side by side."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import aiohttp

from airflow_arcadia.batch import Progress
from airflow_arcadia.batch.progress import History
from airflow_arcadia.exceptions import ArcadiaError, UnreadableLeaseError
from airflow_arcadia.hooks.arcadia import ArcadiaHook
from airflow_arcadia.launchers.reaper import Held
from airflow_arcadia.ray_dashboard import ClusterFacts, RayDashboard
from airflow_arcadia.reap import connection_ids
from airflow_arcadia.ui import database, view
from airflow_arcadia.ui.cache import Reading, Sources
from airflow_arcadia.worker import WorkerHandle

REQUEST_S = 1.5
"""Seconds a worker or dashboard may take to answer one request of the page."""
MOST_HISTORIES = 200
"""Batches whose progress over time is remembered here, the latest."""


class Snapshots:
    """Makes snapshots; readers at the same moment share one reading of every source.

    :param now: seconds since the epoch.
    """

    def __init__(self, sources: Sources | None = None, now: Callable[[], float] = time.time) -> None:
        self.sources = sources or Sources()
        self.now = now
        self._tokens: dict[str, tuple[float, float, float]] = {}
        self._histories: dict[tuple[Any, ...], History] = {}

    def take(self) -> dict[str, Any]:
        """Clusters, workers, batches, and which sources are away. Takes a few seconds at the most."""
        now, until = self.now(), self.sources.deadline()
        first = self.sources.read(
            {"Airflow: connections": connection_ids, "Airflow: batches": database.batch_tasks}, until
        )
        connections: list[str] = first["Airflow: connections"].value or []
        batches: list[view.Task] = first["Airflow: batches"].value or []
        wanted: dict[str, Callable[[], Any]] = {}
        for conn_id in connections:
            wanted[f"{conn_id}: leases"] = partial(ask_leases, conn_id)
            wanted[f"{conn_id}: Ray clusters"] = partial(ask_clusters, conn_id)
        readings = first | self.sources.read(wanted, until)
        held = {conn_id: self._held(readings, conn_id) for conn_id in connections}
        runs = {
            (item.lease.identity.dag_id, item.lease.identity.run_id)
            for items in held.values()
            for item in items
            if item.lease and item.lease.warm is None
        }
        tasks_of = {"Airflow: tasks": lambda: database.run_tasks(runs)}
        readings |= self.sources.read(tasks_of, until)
        tasks: list[view.Task] = readings["Airflow: tasks"].value or []
        leases = [
            lease for conn_id in connections for lease in view.workers(conn_id, held[conn_id], tasks, now)
        ]
        readings |= self._ask_workers(leases, batches, tasks, until)
        return {
            "at": now,
            "held": view.held_gpus(leases),
            "clusters": [
                view.cluster(conn_id, *found)
                for conn_id in connections
                for found in readings[f"{conn_id}: Ray clusters"].value or ()
            ],
            "leases": leases,
            "batches": [self._batch(task, tasks, now) for task in batches],
            "away": [
                {"source": name, "error": reading.error}
                for name, reading in readings.items()
                if reading.error
            ],
        }

    @staticmethod
    def _held(readings: dict[str, Reading[Any]], conn_id: str) -> list[Held]:
        return readings[f"{conn_id}: leases"].value or []

    def batch(self, dag_id: str, run_id: str, task_id: str, map_index: int) -> dict[str, Any] | None:
        """One batch with its history and its timeline; None where there is no such batch task.

        Raises :class:`TimeoutError` while Airflow's database does not answer.
        """
        name, until = f"batch {dag_id} {run_id} {task_id} {map_index}", self.sources.deadline()

        def read() -> tuple[view.Task | None, list[view.Task]]:
            task = database.batch_task(dag_id, run_id, task_id, map_index)
            return task, database.run_tasks([(dag_id, run_id)]) if task else []

        reading = self.sources.read({name: read}, until)[name]
        if reading.value is None:
            raise TimeoutError(reading.error)
        task, run = reading.value
        if task is None:
            return None
        self._ask_workers([], [task], run, until)
        shown = self._batch(task, run, self.now())
        return shown | {"timeline": view.timeline(task, run, shown["history"])}

    def _batch(self, task: view.Task, run: list[view.Task], now: float) -> dict[str, Any]:
        """The batch as shown; one that runs in its worker has its history from what was read here."""
        told = self.sources.kept(_batch_source(task)) if task.store.get("batch_id") else None
        shown = view.batch(task, now, told)
        key = tuple(task.key.values())
        if told and told.get("progress") and task.state == "deferred":
            self._histories.setdefault(key, History()).add(now, Progress(**told["progress"]))
            for old in list(self._histories)[: max(0, len(self._histories) - MOST_HISTORIES)]:
                del self._histories[old]
        if not shown["history"] and key in self._histories:
            shown["history"] = self._histories[key].points
        return shown

    def _ask_workers(
        self,
        leases: list[dict[str, Any]],
        batches: Sequence[view.Task],
        tasks: Sequence[view.Task],
        until: float,
    ) -> dict[str, Reading[Any]]:
        """Ask every worker that can answer for its numbers and batches, and write numbers into ``leases``."""
        asked = {
            f"worker {worker['name']}": worker
            for lease in leases
            if lease["phase"] in {"ready", "waiting for its next task"} or lease.get("users") is not None
            for worker in lease["workers"]
            if worker["url"]
        }
        wanted: dict[str, Callable[[], Any]] = {
            name: partial(ask_metrics, worker["url"]) for name, worker in asked.items()
        }
        for batch in batches:
            in_run = [task for task in tasks if (task.dag_id, task.run_id) == (batch.dag_id, batch.run_id)]
            handle = view.worker_of(batch, in_run)
            if batch.state == "deferred" and batch.store.get("batch_id") and handle:
                wanted[_batch_source(batch)] = partial(ask_batch, dict(handle), str(batch.store["batch_id"]))
        readings = self.sources.read(wanted, until)
        for name, worker in asked.items():
            reading = readings[name]
            if reading.error:
                worker["reason"] = "it does not answer"
            if reading.value is not None:
                read_at, metrics, worker["state"], reason = reading.value
                worker["reason"] = worker["reason"] or reason
                rate = self._rate(name, read_at, metrics.get("generation_tokens"))
                worker["metrics"] = {**metrics, "tokens_per_s": rate}
        return readings

    def _rate(self, name: str, read_at: float, tokens: float | None) -> float | None:
        """Generated tokens per second since the reading before."""
        if tokens is None:
            return None
        then, before, rate = self._tokens.get(name, (read_at, tokens, 0.0))
        if read_at > then:
            rate = max(tokens - before, 0.0) / (read_at - then)  # an engine that restarted counts anew
        self._tokens[name] = (read_at, tokens, rate)
        return rate


def ask_leases(conn_id: str) -> list[Held]:
    """Every lease of that connection."""
    return list(ArcadiaHook(conn_id).reap_backend.held())


def ask_clusters(conn_id: str) -> list[tuple[str, str, ClusterFacts | str]]:
    """Name, URL and facts of every Ray cluster of that connection's arcadia-config."""
    hook = ArcadiaHook(conn_id)
    token = hook.ray_token

    async def ask(url: str) -> ClusterFacts | str:
        try:
            return await RayDashboard(url, token=token).facts()
        except Exception as error:  # noqa: BLE001 - whatever is wrong with one is shown beside the others
            return str(error)

    async def ask_all() -> list[tuple[str, str, ClusterFacts | str]]:
        found = await asyncio.gather(*(ask(cluster.dashboard_url) for cluster in clusters))
        return [
            (cluster.name, cluster.dashboard_url, facts)
            for cluster, facts in zip(clusters, found, strict=True)
        ]

    clusters = hook.config.ray_clusters
    return asyncio.run(ask_all())


def ask_batch(handle: Mapping[str, Any], batch_id: str) -> dict[str, Any]:
    """What the worker says of a batch that it runs itself: its ``progress``, None before the first row."""
    worker = WorkerHandle.from_dict(handle)
    conn_id = connection_of(worker.lease)
    if conn_id is None:
        raise LookupError(f"the worker of {batch_id} has ended")
    hook = ArcadiaHook(conn_id)

    async def ask() -> dict[str, Any]:
        batches = await hook.remote_batches(worker)
        return await asyncio.wait_for(batches.get(batch_id), REQUEST_S)

    return {"progress": progress_in(asyncio.run(ask()))}


def progress_in(answer: Mapping[str, Any]) -> dict[str, Any] | None:
    """The progress in a worker's answer about a batch; None where it has none.

    Checked here, where an error is that of the source: a worker of another version, or a sick one, must not
    break the page. Raises :class:`~airflow_arcadia.exceptions.ArcadiaConfigError`.
    """
    told = answer.get("progress")
    return None if told is None else Progress.from_dict(told).to_dict()


def connection_of(lease: str) -> str | None:
    """The connection that has the lease; None where no connection has it any more.

    Raises :class:`ArcadiaError` where it is in none that can be read, and another cannot.
    """
    unread: ArcadiaError | None = None
    for conn_id in connection_ids():
        try:
            if ArcadiaHook(conn_id).leases.read(lease) is not None:
                return conn_id
        except UnreadableLeaseError:
            return conn_id  # it is there
        except ArcadiaError as error:
            unread = error
    if unread is not None:
        raise unread
    return None


def _batch_source(task: view.Task) -> str:
    return f"batch {task.task_id} of {task.run_id}"


def ask_metrics(url: str) -> tuple[float, dict[str, float], str | None, str | None]:
    """When (monotonic seconds) and what the engine at ``url`` said, the worker's state and the reason."""

    async def ask() -> str:
        timeout = aiohttp.ClientTimeout(total=REQUEST_S)
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(f"{url.rstrip('/')}/metrics") as response,
        ):
            response.raise_for_status()
            return await response.text()

    text = asyncio.run(ask())
    return time.monotonic(), view.parse_metrics(text), *view.worker_state(text)
