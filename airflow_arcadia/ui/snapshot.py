"""One picture of clusters, workers and batches, read from all sources side by side."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import aiohttp

from airflow_arcadia.hooks.arcadia import ArcadiaHook
from airflow_arcadia.launchers.reaper import Held
from airflow_arcadia.ray_dashboard import ClusterFacts, RayDashboard
from airflow_arcadia.reap import connection_ids
from airflow_arcadia.ui import database, view
from airflow_arcadia.ui.cache import Reading, Sources

REQUEST_S = 1.5
"""Seconds a worker or dashboard may take to answer one request of the page."""


class Snapshots:
    """Makes snapshots; readers at the same moment share one reading of every source.

    :param now: seconds since the epoch.
    """

    def __init__(self, sources: Sources | None = None, now: Callable[[], float] = time.time) -> None:
        self.sources = sources or Sources()
        self.now = now
        self._tokens: dict[str, tuple[float, float, float]] = {}

    def take(self) -> dict[str, Any]:
        """Clusters, workers, batches, and which sources are away. Takes a few seconds at the most."""
        now = self.now()
        first = self.sources.read(
            {"Airflow: connections": connection_ids, "Airflow: batches": database.batch_tasks}
        )
        connections: list[str] = first["Airflow: connections"].value or []
        batches: list[view.Task] = first["Airflow: batches"].value or []
        wanted: dict[str, Callable[[], Any]] = {}
        for conn_id in connections:
            wanted[f"{conn_id}: leases"] = partial(ask_leases, conn_id)
            wanted[f"{conn_id}: Ray clusters"] = partial(ask_clusters, conn_id)
        readings = first | self.sources.read(wanted)
        held = {conn_id: self._held(readings, conn_id) for conn_id in connections}
        runs = {
            (item.lease.identity.dag_id, item.lease.identity.run_id)
            for items in held.values()
            for item in items
            if item.lease and item.lease.warm is None
        }
        tasks_of = {"Airflow: tasks": lambda: database.run_tasks(runs)}
        readings |= self.sources.read(tasks_of)
        tasks: list[view.Task] = readings["Airflow: tasks"].value or []
        leases = [
            lease for conn_id in connections for lease in view.workers(conn_id, held[conn_id], tasks, now)
        ]
        readings |= self._measure(leases)
        return {
            "at": now,
            "held": view.held_gpus(leases),
            "clusters": [
                view.cluster(conn_id, *found)
                for conn_id in connections
                for found in readings[f"{conn_id}: Ray clusters"].value or ()
            ],
            "leases": leases,
            "batches": [view.batch(task, now) for task in batches],
            "away": [
                {"source": name, "error": reading.error}
                for name, reading in readings.items()
                if reading.error
            ],
        }

    @staticmethod
    def _held(readings: dict[str, Reading[Any]], conn_id: str) -> list[Held]:
        return readings[f"{conn_id}: leases"].value or []

    def _measure(self, leases: list[dict[str, Any]]) -> dict[str, Reading[Any]]:
        """Ask every worker that can answer for its numbers, and write them into ``leases``."""
        asked = {
            f"worker {worker['name']}": worker
            for lease in leases
            if lease["phase"] in {"ready", "waiting for its next task"} or lease.get("users") is not None
            for worker in lease["workers"]
            if worker["url"]
        }
        readings = self.sources.read(
            {name: partial(ask_metrics, worker["url"]) for name, worker in asked.items()}
        )
        for name, worker in asked.items():
            reading = readings[name]
            if reading.value is not None:
                read_at, metrics = reading.value
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


def ask_metrics(url: str) -> tuple[float, dict[str, float]]:
    """When (monotonic seconds) and what the engine of the worker at ``url`` said."""

    async def ask() -> str:
        timeout = aiohttp.ClientTimeout(total=REQUEST_S)
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(f"{url.rstrip('/')}/metrics") as response,
        ):
            response.raise_for_status()
            return await response.text()

    text = asyncio.run(ask())
    return time.monotonic(), view.parse_metrics(text)
