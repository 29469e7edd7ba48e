"""Run a worker as a pod of a Kubernetes cluster."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from typing import Any

from airflow_arcadia.exceptions import ArcadiaConfigError
from airflow_arcadia.kubernetes.api import KubernetesApi, Session
from airflow_arcadia.kubernetes.ensure import make
from airflow_arcadia.kubernetes.errors import KubernetesUnreachableError
from airflow_arcadia.kubernetes.kinds import POD, SECRET, SERVICE, Object
from airflow_arcadia.kubernetes.leases import KubernetesLeases
from airflow_arcadia.kubernetes.pod_reader import follow, look, unless_unreachable
from airflow_arcadia.kubernetes.pod_status import PodSeen, is_ready, observe_pod
from airflow_arcadia.kubernetes.watches import together
from airflow_arcadia.launchers.base import Credentials
from airflow_arcadia.launchers.pod import manifest
from airflow_arcadia.launchers.pod.secrets import read_credentials
from airflow_arcadia.launchers.pod.settings import PodSettings, refuse_secrets
from airflow_arcadia.lease import Lease, Owned
from airflow_arcadia.readiness import ProcessObservation
from airflow_arcadia.worker import PlacedWorker, RayConnection, WorkerHandle, WorkerSpec

_LOOK_AGAIN_S = 2.0  # for what changes with time alone: a grace that is over


class PodLauncher:
    """Runs workers as pods under leases of the cluster.

    :param api: namespace to run them in.
    :param leases: where the leases are.
    :param settings: how the pods are made; only needed to launch.
    :param secrets: what the workers may know: ``api-key``, ``ray-token``, ``hf-token``, ``batch-token``.
    :param request: last change to a pod's manifest before it is sent, e.g. Airflow's identity labels.
    """

    name = "pod"
    runs_as = "a pod"
    on_this_machine = False
    drain_seconds = 30.0

    def __init__(
        self,
        api: KubernetesApi,
        leases: KubernetesLeases,
        settings: PodSettings | None = None,
        secrets: Mapping[str, str] | None = None,
        request: Callable[[Object], Object] | None = None,
    ) -> None:
        self._api = api
        self._leases = leases
        self._settings = settings or PodSettings()
        self._secrets = secrets or {}
        self._request = request or (lambda pod: pod)

    def launch(self, spec: WorkerSpec, lease: Lease, *, ray: RayConnection | None) -> WorkerHandle:
        """Make the worker's objects, or find those an earlier attempt made; does not wait for the pod to run.

        Raises :class:`ArcadiaConfigError` for settings that do not fit, and the API server's refusal.
        """
        if spec.uses_ray and not spec.ray_address:
            raise ArcadiaConfigError(
                f"NUMBER_GPUS is {spec.num_gpus} but the worker has no Ray cluster.",
                what_to_do="Give it what ArcadiaProvisionRayClusterOperator returned.",
            )
        if not (self._settings.full_pod_spec or self._settings.pod_template_dict):
            self._settings.require_image()
        refuse_secrets(spec.additional_envs)
        placement = manifest.placement(
            spec.name,
            self._settings,
            self._api.namespace,
            self._secrets,
            gateway=spec.controller_address is not None,
        )
        placed = spec.at(placement)
        pod = self._request(manifest.pod(placed, lease, self._settings, self._secrets))
        if placed.uses_ray:
            pod = manifest.with_own_gpus(pod, placed)
        where: dict[str, Any] = {
            "namespace": self._api.namespace,
            "pod": pod["metadata"]["name"],
            "container": manifest.CONTAINER,
            "unschedulable_grace": self._settings.unschedulable_grace,
        }
        item = Owned("worker", spec.name, self.name, where)
        lease = self._leases.update(lease.name, lambda held: held.record(item))
        made = self._api.run(lambda session: self._make(session, placed, lease, pod))
        return WorkerHandle(
            name=spec.name,
            lease=lease.name,
            launcher=self.name,
            url=placed.url,
            served_model_name=placed.served_model_name,
            num_gpus=placed.num_gpus,
            controller_address=placed.controller_address,
            ray=ray,
            where=where | {"uid": made["metadata"]["uid"]},
        )

    async def observe(self, handle: WorkerHandle) -> ProcessObservation:
        """Whether its pod runs, and why not."""
        where = handle.where
        try:
            async with self._api.session() as session:
                session.patience_s = 0.0  # the next observation is the retry
                seen = await _look(session, where, await session.get(POD, str(where["pod"])))
        except KubernetesUnreachableError as error:
            return ProcessObservation(None, doing=error.what)
        return _judged(seen, where)

    async def watch(self, handle: WorkerHandle) -> AsyncGenerator[ProcessObservation, None]:
        """What it does, now and after every change, by a watch; ``alive`` is None while it cannot be read."""
        where = handle.where
        async with self._api.session() as session:
            session.patience_s = 0.0  # the next change is the retry
            changes = together(
                session.changes(POD, fields=f"metadata.name={where['pod']}"), every_s=_LOOK_AGAIN_S
            )
            read, seen = None, None
            async with aclosing(changes):
                async for (found,) in changes:
                    # A pod that serves says no more than its changes do.
                    if found is None:
                        seen = None
                    elif found is not read or seen is None or not is_ready(seen.pod):
                        seen = await unless_unreachable(_look(session, where, found[0] if found else None))
                    read = found
                    yield ProcessObservation(None) if seen is None else _judged(seen, where)

    async def log_lines(self, handle: WorkerHandle) -> AsyncIterator[str]:
        """The worker's log as it grows, from its beginning, however often the connection breaks."""

        async def pod_now() -> str:
            return str(handle.where["pod"])

        async with (
            self._api.session() as session,
            aclosing(follow(session, handle.where["container"], pod_now)) as lines,
        ):
            async for text in lines:
                yield text

    async def credentials(self, handle: WorkerHandle) -> Credentials:
        """What is in its Secret. Raises :class:`ArcadiaError` when that is gone or cannot be read."""
        async with self._api.session() as session:
            return await read_credentials(session, manifest.object_name(handle.name))

    async def _make(self, session: Session, placed: PlacedWorker, lease: Lease, pod: Object) -> Object:
        if self._secrets:
            secret = manifest.secret(placed, lease, self._settings, self._secrets)
            await make(session, SECRET, secret, lease)
        await make(session, SERVICE, manifest.service(placed, lease, self._settings), lease)
        return await make(session, POD, pod, lease)


async def _look(session: Session, where: Mapping[str, Any], pod: Object | None) -> PodSeen:
    if pod is not None and where.get("uid") not in {None, pod["metadata"]["uid"]}:
        pod = None  # another one, made later, has its name
    return await look(session, str(where["pod"]), str(where["container"]), pod)


def _judged(seen: PodSeen, where: Mapping[str, Any]) -> ProcessObservation:
    grace_s = float(where.get("unschedulable_grace") or 0.0)
    return observe_pod(seen, now=time.time(), unschedulable_grace_s=grace_s)
