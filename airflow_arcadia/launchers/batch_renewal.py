"""Renew the lease of a pod whose own batch gets further, while nobody else renews it.

A batch in the worker (``run_in="worker"``) needs no Airflow. A worker that is a process renews its lease's
file itself. A pod runs a model's code and gets no right to its Lease: the lease watcher asks the worker, and
renews.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import aiohttp

from airflow_arcadia.exceptions import ArcadiaError
from airflow_arcadia.kubernetes.api import KubernetesApi, Session
from airflow_arcadia.kubernetes.kinds import LEASE_LABEL, POD, WORKER_LABEL, Object
from airflow_arcadia.kubernetes.leases import change_lease
from airflow_arcadia.launchers.reaper import Held
from airflow_arcadia.lease import Lease

STATUS_PATH = "/worker_get_status"
PROGRESS_AGE = "seconds_since_batch_progress"
"""Field of a worker's status: seconds since a batch that runs in it last answered a row; null before."""
_ASK_S = 2.5
_LONGEST_ANSWER = 1 << 16  # a model's code may answer in the worker's place

log = logging.getLogger(__name__)


class BatchRenewal:
    """Renews leases of a namespace by the progress that their workers tell of.

    :param api: the namespace.
    :param clock: seconds since the epoch, at which a worker is asked.
    """

    def __init__(self, api: KubernetesApi, clock: Callable[[], float] = time.time) -> None:
        self._api = api
        self._clock = clock

    def renew(self, held: Sequence[Held], now: float) -> list[Held]:
        """The same leases, renewed where a batch gets further that nobody else renews for.

        A worker that does not answer renews nothing. Raises :class:`ArcadiaError` when the pods cannot be
        listed.
        """
        due = [item.lease for item in held if item.lease is not None and is_due(item.lease, now)]
        if not due:
            return list(held)
        renewed = self._api.run(lambda session: _renewed(session, due, self._clock))
        return [replace(item, lease=renewed.get(item.name, item.lease)) for item in held]


def is_due(lease: Lease, now: float) -> bool:
    """Whether somebody should have renewed the lease by now: only then its workers are asked."""
    return not lease.released and now >= lease.last_renewed_at + lease.renewal_interval_s


def progressed_at(answer: object, asked_at: float) -> float | None:
    """When a batch in a worker got further for the last time, or somewhat before; None when none did.

    :param answer: the JSON of the worker's status; anything a model's code may answer.
    :param asked_at: when it was asked, seconds since the epoch.
    """
    age = answer.get(PROGRESS_AGE) if isinstance(answer, Mapping) else None
    if isinstance(age, bool) or not isinstance(age, (int, float)) or not math.isfinite(age) or age < 0:
        return None
    return asked_at - age


def renews(lease: Lease, moment: float | None) -> bool:
    """Whether progress at ``moment`` renews the lease.

    The same progress, told of by a slower answer, must not renew it once more.
    """
    return moment is not None and moment > lease.last_renewed_at + 2 * _ASK_S


def lease_of(pod: Object, leases: Sequence[Lease]) -> str | None:
    """Name of the lease that the worker in the pod serves under; None for another pod.

    A pod of ours carries its lease's label. One that Arcadia's operator made carries its Worker's name alone,
    and the lease says which Workers are its own.
    """
    labels = pod["metadata"].get("labels") or {}
    for lease in leases:
        if LEASE_LABEL in labels:
            mine = labels[LEASE_LABEL] == lease.name
        else:
            mine = labels.get(WORKER_LABEL, "") in {item.where.get("worker") for item in lease.owned}
        if mine:
            return lease.name
    return None


def status_url(pod: Object) -> str | None:
    """Where the worker in that pod tells its status; None while the pod has no address."""
    address = (pod.get("status") or {}).get("podIP")
    ports = [port for container in pod["spec"]["containers"] for port in container.get("ports") or ()]
    port = next((port["containerPort"] for port in ports if port.get("name") == "http"), None)
    if not address or port is None:
        return None
    host = f"[{address}]" if ":" in address else address
    return f"http://{host}:{port}{STATUS_PATH}"


async def _renewed(session: Session, due: Sequence[Lease], clock: Callable[[], float]) -> dict[str, Lease]:
    """Those of the leases that were renewed, by name."""
    urls: dict[str, list[str]] = {lease.name: [] for lease in due}
    for pod in await session.find(POD, WORKER_LABEL):
        name, url = lease_of(pod, due), status_url(pod)
        if name is not None and url is not None:
            urls[name].append(url)
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_ASK_S)) as client:
        moments = await asyncio.gather(
            *(asyncio.gather(*(_ask(client, url, clock) for url in urls[lease.name])) for lease in due)
        )
    found: dict[str, Lease] = {}
    for lease, told in zip(due, moments, strict=True):
        moment = max((moment for moment in told if moment is not None), default=None)
        if moment is None or not renews(lease, moment):
            continue
        # Whose batch gets further in a warm worker is not known: it is renewed for all who use it.
        for name in [lease.name, *(use.user for use in (lease.warm.uses if lease.warm else ()))]:
            try:
                found[name] = await _renew(session, name, moment)
            except ArcadiaError as error:
                log.warning("Lease %s, whose batch gets further, was not renewed: %s", name, error)
    return found


async def _renew(session: Session, name: str, moment: float) -> Lease:
    renewed = await change_lease(session, name, lambda held: held if held.released else held.renew(moment))
    log.info("Renewed lease %s: the batch in its worker gets further.", name)
    return renewed


async def _ask(client: aiohttp.ClientSession, url: str, clock: Callable[[], float]) -> float | None:
    """When the worker's batch got further; None when it does not tell."""
    asked_at = clock()
    try:
        async with client.post(url, json={}, allow_redirects=False) as response:
            body = await response.content.read(_LONGEST_ANSWER)
            return progressed_at(json.loads(body), asked_at) if response.status == 200 else None
    except (aiohttp.ClientError, asyncio.TimeoutError, OSError, ValueError, RecursionError):
        return None
