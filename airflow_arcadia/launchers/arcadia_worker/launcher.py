"""Run a worker as Arcadia's own Worker resource, which Arcadia's operator makes a pod of."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from airflow_arcadia.exceptions import ArcadiaConfigError
from airflow_arcadia.kubernetes.api import KubernetesApi, Session
from airflow_arcadia.kubernetes.ensure import make
from airflow_arcadia.kubernetes.errors import KubernetesUnreachableError
from airflow_arcadia.kubernetes.kinds import LEASE_LABEL, POD, SECRET, WORKER, Object
from airflow_arcadia.kubernetes.leases import KubernetesLeases
from airflow_arcadia.kubernetes.pod_reader import follow, look, unless_unreachable
from airflow_arcadia.kubernetes.pod_template import API_KEY, BATCH_TOKEN
from airflow_arcadia.kubernetes.watches import together
from airflow_arcadia.launchers.arcadia_worker import manifest as resource
from airflow_arcadia.launchers.arcadia_worker.ownership import LAUNCHER, take_offline, take_online, taken_by
from airflow_arcadia.launchers.arcadia_worker.settings import (
    DELETE,
    INDEX,
    OFFLINE,
    WorkerResourceSettings,
    is_arcadias_runner,
)
from airflow_arcadia.launchers.arcadia_worker.status import (
    CONTAINER,
    OFFLINE_SINCE,
    WorkerSeen,
    is_online,
    newest,
    observe_worker,
    offline_since,
    pods_of,
)
from airflow_arcadia.launchers.base import Credentials
from airflow_arcadia.launchers.pod.secrets import read_credentials
from airflow_arcadia.lease import Lease, Owned
from airflow_arcadia.readiness import ProcessObservation
from airflow_arcadia.worker import PlacedWorker, RayConnection, WorkerHandle, WorkerSpec

_LOOK_AGAIN_S = 2.0  # for what changes with time alone: a grace that is over
_GONE_S = 90.0  # beyond our grace: the pod's own, which Arcadia leaves at 30 s, and the collection
_POLL_S = 0.2

log = logging.getLogger(__name__)


class CustomResourceLauncher:
    """Runs workers as Arcadia's Workers, under leases of the cluster.

    :param api: namespace to run them in; Arcadia's operator must act there.
    :param leases: where the leases are.
    :param settings: how the Workers are made; only needed to launch.
    :param secrets: ``batch-token``, which a Worker of our image gets through a Secret, and ``api-key``, which
        it does not: see :meth:`credentials`.
    """

    name = LAUNCHER
    runs_as = "Arcadia's Worker"
    on_this_machine = False
    drain_seconds = 10.0

    def __init__(
        self,
        api: KubernetesApi,
        leases: KubernetesLeases,
        settings: WorkerResourceSettings | None = None,
        secrets: Mapping[str, str] | None = None,
    ) -> None:
        self._api = api
        self._leases = leases
        self._settings = settings or WorkerResourceSettings()
        self._secrets = secrets or {}

    def launch(self, spec: WorkerSpec, lease: Lease, *, ray: RayConnection | None) -> WorkerHandle:
        """Make the Worker or take it online, or find the one of an earlier attempt.

        Returns once the API server has it. Raises :class:`ArcadiaConfigError` for settings that do not fit,
        and the API server's refusal.
        """
        settings, namespace = self._settings, self._api.namespace
        self._check(spec, ray)
        placed = resource.placed_worker(spec, settings, namespace)
        secret = self._secret(placed, lease)
        body = None
        if not settings.existing:
            body = resource.worker(placed, lease, settings, namespace, secret=secret)
        name = settings.name or spec.name
        where: dict[str, Any] = {
            "namespace": namespace,
            "worker": name,
            "container": CONTAINER,
            "lease": lease.name,
            "teardown": OFFLINE if settings.kept else DELETE,
            "unschedulable_grace": settings.unschedulable_grace,
        }
        if secret is not None:
            where["secret"] = secret["metadata"]["name"]
        item = Owned("worker", spec.name, self.name, where)
        held = self._leases.update(lease.name, lambda found: found.record(item))
        made = self._api.run(lambda session: self._make(session, placed, held, body, secret))
        if is_arcadias_runner((made["spec"].get("runner") or {}).get("image")):
            log.warning(
                "Worker %s runs Arcadia's own image, which cannot serve batch requests; set "
                "custom_resource.runner.image.",
                name,
            )
        where["uid"] = made["metadata"]["uid"]
        if (since := offline_since(made)) is not None:
            where[OFFLINE_SINCE] = since
        return WorkerHandle(
            name=spec.name,
            lease=lease.name,
            launcher=self.name,
            url=placed.url,
            served_model_name=where["uid"],  # the name under which Arcadia registers it
            num_gpus=resource.gpus_of(made),
            controller_address=placed.controller_address,
            ray=ray,
            where=where,
            model_identity=resource.model_identity(made),
        )

    async def observe(self, handle: WorkerHandle) -> ProcessObservation:
        """Whether it runs, and why not."""
        where = handle.where
        try:
            async with self._api.session() as session:
                session.patience_s = 0.0  # the next observation is the retry
                worker = await session.get(WORKER, where["worker"])
                pods = await session.find(POD, labels=pods_of(where["worker"]))
                seen = await _look(session, where, worker, pods)
        except KubernetesUnreachableError as error:
            return ProcessObservation(None, doing=error.what)
        return observe_worker(seen, where, now=time.time())

    async def watch(self, handle: WorkerHandle) -> AsyncGenerator[ProcessObservation, None]:
        """What it does, now and after every change of it or its pods; ``alive`` is None while unreadable."""
        where = handle.where
        async with self._api.session() as session:
            session.patience_s = 0.0  # the next change is the retry
            changes = together(
                session.changes(WORKER, fields=f"metadata.name={where['worker']}"),
                session.changes(POD, labels=pods_of(where["worker"])),
                every_s=_LOOK_AGAIN_S,
            )
            async with aclosing(changes):
                async for workers, pods in changes:
                    seen = None
                    if workers is not None and pods is not None:
                        worker = workers[0] if workers else None
                        seen = await unless_unreachable(_look(session, where, worker, pods))
                    if seen is None:
                        yield ProcessObservation(None)
                    else:
                        yield observe_worker(seen, where, now=time.time())

    async def log_lines(self, handle: WorkerHandle) -> AsyncIterator[str]:
        """The log of its newest pod's runner as it grows, from that pod's beginning."""
        where = handle.where
        async with self._api.session() as session:

            async def pod_now() -> str | None:
                found = newest(await session.find(POD, labels=pods_of(where["worker"])))
                return found["metadata"]["name"] if found is not None else None

            async with aclosing(follow(session, where["container"], pod_now)) as lines:
                async for text in lines:
                    yield text

    async def credentials(self, handle: WorkerHandle) -> Credentials:
        """The batch token in the Secret made for it; and the connection's API key, if it has one.

        Arcadia's gateway, which sends no key, reaches a Worker at the one port that Arcadia's Service has: so
        we give it none. One that its user made may ask for the connection's. Raises :class:`ArcadiaError`
        when the Secret is gone or cannot be read.
        """
        token = None
        if "secret" in handle.where:
            async with self._api.session() as session:
                token = (await read_credentials(session, str(handle.where["secret"]))).batch_token
        return Credentials(self._secrets.get(API_KEY), token)

    def stop(self, where: Mapping[str, object], *, grace_s: float) -> Sequence[str]:
        """Delete it or take it offline, and wait until its pods are gone; returns what is still there."""
        return self._api.run(lambda session: self._stop(session, where, grace_s))

    def _check(self, spec: WorkerSpec, ray: RayConnection | None) -> None:
        settings = self._settings
        if settings.namespace not in {None, self._api.namespace}:
            raise ArcadiaConfigError(
                f"The Worker is to be in namespace {settings.namespace}, but the connection works in "
                f"{self._api.namespace}.",
                what_to_do="Correct the manifest, or the connection's namespace.",
            )
        if ray is None:
            return
        if ray.created:
            raise ArcadiaConfigError(
                f"Ray cluster {ray.name} was made for this run; Arcadia's operator only uses those of its "
                "own arcadia-config.",
                still_running="The Ray cluster runs until the teardown.",
                what_to_do="Use create='never' and a Ray cluster of arcadia-config, or launcher='pod'.",
            )
        index = resource.ray_cluster_index(spec, settings)
        if not settings.existing and index != ray.index:
            raise ArcadiaConfigError(
                f"{INDEX} is {index}, but the Ray cluster that was provisioned is {ray.index} ({ray.name}).",
                what_to_do="Provision that one, or leave the index out.",
            )

    def _secret(self, placed: PlacedWorker, lease: Lease) -> Object | None:
        """The Secret of a Worker that is made here and whose image reads it."""
        token = self._secrets.get(BATCH_TOKEN)
        if token is None or self._settings.existing or not self._settings.own_image:
            return None
        return resource.secret(placed, lease, token)

    async def _make(
        self,
        session: Session,
        placed: PlacedWorker,
        lease: Lease,
        body: Object | None,
        secret: Object | None,
    ) -> Object:
        settings = self._settings
        if secret is not None:
            await make(session, SECRET, secret, lease)
        if body is not None and not settings.kept:
            return await make(session, WORKER, body, lease)
        name = settings.name or placed.name
        return await take_online(
            session, name, lease, body, lambda found: resource.check_fits(found, placed, settings)
        )

    async def _stop(self, session: Session, where: Mapping[str, object], grace_s: float) -> list[str]:
        name, lease = str(where["worker"]), str(where["lease"])
        if where["teardown"] == OFFLINE:
            worker = await take_offline(session, name, lease)
            if worker is not None and (is_online(worker) or taken_by(worker) is not None):
                return []  # another lease took it online
        else:
            worker = await session.get(WORKER, name)
            if worker is not None:
                if (worker["metadata"].get("labels") or {}).get(LEASE_LABEL) != lease:
                    return []  # another one of that name, which this lease does not own
                await session.delete(WORKER, name, uid=worker["metadata"]["uid"])
        deadline = time.monotonic() + grace_s + _GONE_S
        while True:
            left = await _left(session, name, None if where["teardown"] == OFFLINE else worker)
            if not left or time.monotonic() > deadline:
                return left
            await asyncio.sleep(_POLL_S)


async def _left(session: Session, name: str, deleted: Object | None) -> list[str]:
    """What is still there of it: the deleted Worker itself, and the pods, which go after it."""
    left = []
    if deleted is not None:
        found = await session.get(WORKER, name)
        if found is not None and found["metadata"]["uid"] != deleted["metadata"]["uid"]:
            return []  # a new one has its name, and makes pods of its own
        if found is not None:
            left.append(f"Worker {session.namespace}/{name}")
    pods = await session.find(POD, labels=pods_of(name))
    return left + [f"Pod {session.namespace}/{pod['metadata']['name']}" for pod in pods]


async def _look(
    session: Session, where: Mapping[str, Any], worker: Object | None, pods: Sequence[Object]
) -> WorkerSeen:
    pod = newest(pods)
    if worker is None or pod is None:
        return WorkerSeen(worker)
    name = pod["metadata"]["name"]
    return WorkerSeen(worker, await look(session, name, str(where["container"]), pod))
