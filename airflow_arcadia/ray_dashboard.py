"""What a Ray cluster says of itself, read from its dashboard's REST API.

Endpoints and answers are those of Ray 2.60's dashboard (port 8265): ``/api/authentication_mode``,
``/api/v0/cluster_metadata``, ``/api/v0/nodes``, ``/api/cluster_status``, ``/api/v0/placement_groups``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from airflow_arcadia.exceptions import RayAuthenticationError, RayClusterError, RayClusterUnreachableError

TIMEOUT_S = 1.5  # measured answers take 1-19 ms; a refused or silent address must be named within 2 s


@dataclass(frozen=True)
class RayNode:
    """One node.

    :param gpus_total: GPUs it offers; logical ones count.
    :param gpus_used: of these, reserved by tasks, actors and placement groups.
    """

    node_id: str
    ip: str
    is_head: bool
    alive: bool
    gpus_total: float
    gpus_used: float


@dataclass(frozen=True)
class PlacementGroup:
    """One placement group: where an engine's tensor-parallel ranks are.

    :param state: ``CREATED``, ``PENDING``, ``REMOVED`` or ``RESCHEDULING``.
    :param bundles: resources of each bundle, e.g. ``({"GPU": 1.0}, {"GPU": 1.0})``.
    """

    group_id: str
    state: str
    bundles: tuple[Mapping[str, float], ...]
    job_id: str = ""


@dataclass(frozen=True)
class ClusterFacts:
    """What was read at one moment."""

    ray_version: str
    python_version: str
    nodes: tuple[RayNode, ...]
    placement_groups: tuple[PlacementGroup, ...] = field(default=())

    @property
    def gpus_total(self) -> float:
        """GPUs on alive nodes."""
        return sum(node.gpus_total for node in self.nodes if node.alive)

    @property
    def gpus_free(self) -> float:
        """GPUs on alive nodes that nothing has reserved."""
        return self.gpus_total - sum(node.gpus_used for node in self.nodes if node.alive)


class RayDashboard:
    """Async client of one dashboard.

    :param url: base URL, e.g. ``http://127.0.0.1:8265``.
    :param token_file: file with the token, for clusters with token authentication.
    :param token: the token itself, where it is in no file.
    """

    def __init__(self, url: str, token_file: str | None = None, *, token: str | None = None) -> None:
        self.url = url.rstrip("/")
        self._token_file = token_file
        self._token = token

    async def facts(self) -> ClusterFacts:
        """Everything a preflight needs.

        Raises :class:`RayClusterUnreachableError` or :class:`RayAuthenticationError`.
        """
        async with self._session() as session:
            metadata, nodes, status, groups = await asyncio.gather(
                self._get(session, "/api/v0/cluster_metadata"),
                self._get(session, "/api/v0/nodes?detail=1"),
                self._get(session, "/api/cluster_status"),
                self._get(session, "/api/v0/placement_groups?detail=1"),
            )
        try:
            return parse_facts(metadata, nodes, status, groups)
        except (KeyError, TypeError, AttributeError) as error:
            raise self._unreachable(f"its answer is not Ray's: {error!r}") from error

    async def nodes(self) -> tuple[RayNode, ...]:
        """The nodes, dead ones included; GPUs in use are not read.

        Raises :class:`RayClusterUnreachableError` or :class:`RayAuthenticationError`.
        """
        async with self._session() as session:
            raw = await self._get(session, "/api/v0/nodes?detail=1")
        try:
            return _nodes(raw, lambda _: 0.0)
        except (KeyError, TypeError, AttributeError) as error:
            raise self._unreachable(f"its answer is not Ray's: {error!r}") from error

    async def answers(self) -> bool:
        """Whether anything that speaks HTTP is there at all, whatever it says."""
        try:
            async with self._session() as session:
                await self._get(session, "/api/authentication_mode")
        except RayClusterUnreachableError:
            return False
        except RayClusterError:
            return True
        return True

    async def placement_groups(self) -> tuple[PlacementGroup, ...]:
        """The placement groups, removed ones included."""
        async with self._session() as session:
            return _groups(await self._get(session, "/api/v0/placement_groups?detail=1"))

    async def jobs_with(self, key: str, value: str) -> set[str]:
        """Ids of the jobs, ended ones included, whose metadata has ``key`` equal to ``value``."""
        async with self._session() as session:
            jobs = await self._get(session, "/api/jobs/", list)
        return {str(job["job_id"]) for job in jobs if (job.get("metadata") or {}).get(key) == value}

    def _session(self) -> aiohttp.ClientSession:
        token = self._token
        if self._token_file:
            token = Path(self._token_file).read_text(encoding="utf-8").strip()
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return aiohttp.ClientSession(headers=headers, timeout=aiohttp.ClientTimeout(total=TIMEOUT_S))

    async def _get(self, session: aiohttp.ClientSession, path: str, kind: type = dict) -> Any:
        try:
            async with session.get(self.url + path) as response:
                if response.status in {401, 403}:
                    raise self._refused(response.status)
                if response.status != 200:
                    raise self._unreachable(f"{path} answered HTTP {response.status}")
                body = await response.json(content_type=None)
        except (aiohttp.ClientError, asyncio.TimeoutError, ValueError) as error:
            raise self._unreachable(str(error) or type(error).__name__) from error
        if not isinstance(body, kind):
            raise self._unreachable(f"{path} did not answer a JSON {kind.__name__}")
        return body

    def _refused(self, status: int) -> RayAuthenticationError:
        said = "no token was sent" if not (self._token_file or self._token) else "the token sent is wrong"
        return RayAuthenticationError(
            f"The Ray cluster at {self.url} asks for a token and {said} (HTTP {status}).",
            what_to_do="Set ray_token of the arcadia connection to the cluster's token.",
        )

    def _unreachable(self, why: str) -> RayClusterUnreachableError:
        return RayClusterUnreachableError(
            f"No Ray dashboard can be read at {self.url}: {why}.",
            what_to_do="Start the cluster with ray[default], or correct headAddress and dashboardHost.",
        )


def parse_facts(
    metadata: Mapping[str, Any],
    nodes: Mapping[str, Any],
    status: Mapping[str, Any],
    groups: Mapping[str, Any],
) -> ClusterFacts:
    """The four answers as facts. Raises KeyError, TypeError or AttributeError on another shape."""
    usage = status["data"]["clusterStatus"].get("loadMetricsReport", {}).get("usageByNode", {})

    def used(node_id: str) -> float:
        # A node that has just joined has no usage yet: nothing runs on it.
        return float((usage.get(node_id, {}).get("GPU") or [0.0])[0])

    return ClusterFacts(
        ray_version=metadata["data"]["rayVersion"],
        python_version=metadata["data"]["pythonVersion"],
        nodes=_nodes(nodes, used),
        placement_groups=_groups(groups),
    )


def _nodes(raw: Mapping[str, Any], used: Callable[[str], float]) -> tuple[RayNode, ...]:
    return tuple(
        RayNode(
            node_id=node["node_id"],
            ip=node["node_ip"],
            is_head=bool(node.get("is_head_node")),
            alive=node["state"] == "ALIVE",
            gpus_total=float((node.get("resources_total") or {}).get("GPU", 0.0)),
            gpus_used=used(node["node_id"]),
        )
        for node in raw["data"]["result"]["result"]
    )


def _groups(raw: Mapping[str, Any]) -> tuple[PlacementGroup, ...]:
    return tuple(
        PlacementGroup(
            group_id=group["placement_group_id"],
            state=group["state"],
            bundles=tuple(bundle.get("unit_resources") or {} for bundle in group.get("bundles") or ()),
            job_id=group.get("creator_job_id") or "",
        )
        for group in raw["data"]["result"]["result"]
    )
