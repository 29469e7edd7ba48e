"""Ray clusters of a Kubernetes namespace: existing ones are used as they are, KubeRay makes one for a run."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from airflow_arcadia.config import RayCluster
from airflow_arcadia.exceptions import RayClusterError, RayClusterUnreachableError
from airflow_arcadia.kubernetes.api import KubernetesApi, Session
from airflow_arcadia.kubernetes.ensure import make
from airflow_arcadia.kubernetes.kinds import (
    EVENT,
    POD,
    RAY_CLUSTER,
    SECRET,
    Object,
    labels_of_lease,
    owner_reference,
)
from airflow_arcadia.kubernetes.leases import KubernetesLeases
from airflow_arcadia.kubernetes.pod_reader import look
from airflow_arcadia.kubernetes.pod_template import RAY_TOKEN
from airflow_arcadia.kubernetes.watches import together
from airflow_arcadia.lease import Lease, Owned
from airflow_arcadia.preflight import Versions
from airflow_arcadia.ray_cluster.kuberay import manifest
from airflow_arcadia.ray_cluster.kuberay.settings import KubeRaySpec
from airflow_arcadia.ray_cluster.kuberay.status import Coming, judge
from airflow_arcadia.ray_dashboard import RayDashboard
from airflow_arcadia.readiness import Trouble

LAUNCHER = "kuberay"
_LOOK_AGAIN_S = 2.0
_JOIN_S = 60.0  # a node that is Running takes some seconds to be seen by the head
_POLL_S = 0.5

log = logging.getLogger(__name__)


class KubeRayBackend:
    """A namespace whose workers' versions are those of their image.

    :param api: the namespace.
    :param leases: where the leases are.
    :param token: token of Ray clusters that ask for one; a cluster made here asks for it, too.
    """

    def __init__(self, api: KubernetesApi, leases: KubernetesLeases, token: str | None = None) -> None:
        self._api = api
        self._leases = leases
        self._token = token

    def versions(self) -> Versions | None:
        """Only the image knows; the worker's own raylet is refused by a head of another version."""
        return None

    def dashboard(self, url: str) -> RayDashboard:
        """A client with the token."""
        return RayDashboard(url, token=self._token)

    def check(self, spec: Mapping[str, Any] | None) -> None:
        """Raise :class:`ArcadiaConfigError` for settings that are not valid."""
        if spec:
            KubeRaySpec.parse(spec)

    def may_create(self, cluster: RayCluster | None) -> bool:
        """Always: a new cluster has an address of its own."""
        return True

    def use(self, lease: str, cluster: RayCluster) -> None:
        """Nothing: a RayCluster made for one run is in no arcadia-config, so no other run finds it."""

    def created_before(self, lease: str, cluster: RayCluster | None) -> bool:
        """Whether the lease has made one."""
        held = self._leases.read(lease)
        return held is not None and held.find("ray_cluster", lease) is not None

    def create(
        self, lease: str, cluster: RayCluster | None, num_gpus: int, spec: Mapping[str, Any]
    ) -> RayCluster:
        """Make it, or find it, and wait for all its nodes."""
        parsed = KubeRaySpec.parse(spec)
        parsed.require_image()
        if cluster is not None and not parsed.ray_version:
            parsed = dataclasses.replace(parsed, ray_version=cluster.ray_version)
        where = {"namespace": self._api.namespace, "ray_cluster": lease}
        item = Owned("ray_cluster", lease, LAUNCHER, where)
        held = self._leases.update(lease, lambda found: found.record(item))
        body = manifest.ray_cluster(held, parsed, num_gpus, token=self._token is not None)
        count, each = parsed.nodes(num_gpus)

        async def work(session: Session) -> RayCluster:
            if self._token is not None:
                await make(session, SECRET, self._secret(held, self._token), held)
            await make(session, RAY_CLUSTER, body, held)
            made = await self._wait(session, lease, parsed)
            return await self._joined(made, count * each)

        return self._api.run(work)

    def _secret(self, lease: Lease, token: str) -> Object:
        return {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {
                "name": manifest.secret_name(lease),
                "labels": labels_of_lease(lease.name),
                "ownerReferences": [owner_reference(lease.name, lease.uid)],
            },
            "type": "Opaque",
            "data": {RAY_TOKEN: base64.b64encode(token.encode()).decode()},
        }

    async def _wait(self, session: Session, name: str, spec: KubeRaySpec) -> RayCluster:
        """Until KubeRay says that it is ready. Raises :class:`RayClusterError` with what is missing."""
        deadline, said = time.monotonic() + spec.startup_timeout, ""
        changes = together(
            session.changes(RAY_CLUSTER, fields=f"metadata.name={name}"),
            session.changes(POD, labels=f"{manifest.CLUSTER_LABEL}={name}"),
            every_s=_LOOK_AGAIN_S,
        )
        async with contextlib.aclosing(changes):
            async for clusters, pods in changes:
                if clusters is None or pods is None:
                    state: RayCluster | Coming | Trouble = Coming("the API server, which cannot be read")
                else:
                    state = await _judged(session, name, clusters, pods, spec)
                if isinstance(state, RayCluster):
                    return state
                if isinstance(state, Trouble):
                    raise RayClusterError(
                        state.what, still_running=state.still_running, what_to_do=state.what_to_do
                    )
                if state.what != said:
                    said = state.what
                    log.info("RayCluster %s waits for %s", name, said)
                if time.monotonic() > deadline:
                    break
        raise RayClusterError(
            f"RayCluster {name} was not ready within {spec.startup_timeout:.0f} s: still waiting for {said}.",
            still_running="It is still there; the teardown removes it.",
            what_to_do="Raise startup_timeout of ray_cluster_spec, or see what its pods wait for.",
        )

    async def _joined(self, cluster: RayCluster, gpus: int) -> RayCluster:
        """Until the head itself counts the GPUs: a node that runs has not joined yet."""
        dashboard, deadline = self.dashboard(cluster.dashboard_url), time.monotonic() + _JOIN_S
        while True:
            with contextlib.suppress(RayClusterUnreachableError):
                if (await dashboard.facts()).gpus_total >= gpus:
                    return cluster
            if time.monotonic() > deadline:
                return cluster  # what is missing, the check that follows names
            await asyncio.sleep(_POLL_S)


async def _judged(
    session: Session,
    name: str,
    clusters: Sequence[Object],
    pods: Sequence[Object],
    spec: KubeRaySpec,
) -> RayCluster | Coming | Trouble:
    """What one look at the RayCluster of that name says."""
    found = clusters[0] if clusters else None
    events = []
    if found is not None and not pods:
        events = await session.find(EVENT, fields=f"involvedObject.uid={found['metadata']['uid']}")
    return judge(
        name,
        found,
        [await look(session, pod["metadata"]["name"], None, pod) for pod in pods],
        now=time.time(),
        unschedulable_grace_s=spec.unschedulable_grace,
        events=events,
    )
