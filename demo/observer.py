"""What can be seen of a run from outside while it goes on: Ray's REST API, the controller, the processes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import requests

from airflow_arcadia.exceptions import RayClusterError
from airflow_arcadia.lease_store import LeaseStore
from airflow_arcadia.processes import find_marked, shm_files
from airflow_arcadia.ray_dashboard import ClusterFacts, RayDashboard
from airflow_arcadia.runtime.shared_memory import ENGINE_FILE

RANK = "RayWorkerProc"
"""Class of the actor that vLLM's Ray executor runs for each tensor-parallel rank."""

INTERVAL_S = 1.0


@dataclass(frozen=True)
class Seen:
    """Everything seen so far.

    :param bundles: of the placement group that was there last, e.g. ``({"GPU": 1.0}, {"GPU": 1.0})``.
    :param ranks: most actors of class :data:`RANK` that were alive at once.
    :param gpus_serving: most GPUs reserved at a moment when rows were being answered.
    :param models: what the controller listed at such a moment.
    :param shm: files in /dev/shm that processes of the run's leases mapped.
    """

    ray_version: str = ""
    python_version: str = ""
    gpus_total: float = 0.0
    gpus_serving: float = 0.0
    bundles: tuple[dict[str, float], ...] = ()
    ranks: int = 0
    models: tuple[str, ...] = ()
    leases: frozenset[str] = frozenset()
    shm: frozenset[str] = frozenset()

    @property
    def tensor_parallel_size(self) -> int:
        """Ranks that ran, each of them in a bundle of its own with one GPU; 0 if the two do not agree."""
        single = [bundle for bundle in self.bundles if bundle.get("GPU") == 1.0]
        return self.ranks if self.ranks == len(single) == len(self.bundles) else 0


@dataclass
class Observer:
    """Looks once a second, from its own thread, until it is stopped.

    :param serving: whether rows are being answered at this moment.
    :param models: asks the controller for its list.
    """

    dashboard_url: str
    store: LeaseStore
    models: Callable[[], list[str]]
    serving: Callable[[], bool]
    seen: Seen = field(default_factory=Seen)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> Seen:
        """Look no more; returns what was seen."""
        self._stop.set()
        self._thread.join()
        return self.seen

    def leftovers(self) -> list[str]:
        """What is still there of all that was seen."""
        left = []
        for lease in sorted(self.seen.leases | set(self.store.names())):
            left += [f"process {p.pid} of lease {lease}" for p in find_marked(lease)]
            left += [f"lease {lease}"] if self.store.file(lease).exists() else []
        left += [f"shared memory {path}" for path in sorted(self.seen.shm) if Path(path).exists()]
        if asyncio.run(RayDashboard(self.dashboard_url).answers()):
            left.append(f"Ray head at {self.dashboard_url}")
        return left

    def _loop(self) -> None:
        while not self._stop.is_set():
            self.seen = self._look(self.seen)
            self._stop.wait(INTERVAL_S)

    def _look(self, seen: Seen) -> Seen:
        leases = seen.leases | set(self.store.names())
        pids = [process.pid for lease in leases for process in find_marked(lease)]
        files = {path for path in shm_files(pids) if ENGINE_FILE.match(path)}
        seen = replace(seen, leases=leases, shm=seen.shm | files)
        serving = self.serving()
        if serving:
            seen = replace(seen, models=tuple(sorted({*seen.models, *self.models()})))
        try:
            facts = asyncio.run(RayDashboard(self.dashboard_url).facts())
        except RayClusterError:
            return seen  # no head yet, or no more
        seen = with_facts(seen, facts, serving=serving)
        return replace(seen, ranks=max(seen.ranks, ranks_alive(self.dashboard_url)))


def with_facts(seen: Seen, facts: ClusterFacts, *, serving: bool) -> Seen:
    """With what Ray told at one moment."""
    used = facts.gpus_total - facts.gpus_free
    groups = [group for group in facts.placement_groups if group.state == "CREATED"]
    return replace(
        seen,
        ray_version=facts.ray_version,
        python_version=facts.python_version,
        gpus_total=max(seen.gpus_total, facts.gpus_total),
        gpus_serving=max(seen.gpus_serving, used) if serving else seen.gpus_serving,
        bundles=tuple(dict(bundle) for bundle in groups[-1].bundles) if groups else seen.bundles,
    )


def ranks_alive(dashboard_url: str) -> int:
    """How many of vLLM's ranks Ray runs now; 0 where it cannot be asked."""
    try:
        answer = requests.get(f"{dashboard_url}/api/v0/actors?detail=1&limit=1000", timeout=2).json()
        return count_ranks(answer["data"]["result"]["result"])
    except (requests.RequestException, ValueError, KeyError, TypeError):
        return 0


def count_ranks(actors: list[dict[str, Any]]) -> int:
    """Those that are alive and a rank of vLLM's."""
    return sum(a.get("state") == "ALIVE" and RANK in str(a.get("class_name")) for a in actors)
