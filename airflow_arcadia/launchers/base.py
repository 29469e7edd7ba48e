"""The protocol that every launcher follows."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from airflow_arcadia.lease import Lease
from airflow_arcadia.readiness import ProcessObservation
from airflow_arcadia.worker import RayConnection, WorkerHandle, WorkerSpec

__all__ = ["Credentials", "Launcher", "ProcessObservation"]


@dataclass(frozen=True)
class Credentials:
    """What a task sends to its worker. Read when it is needed, never part of a handle, which is an XCom.

    :param api_key: None for a worker that asks for no key.
    :param batch_token: how the worker knows its own run's tasks; None for one that was launched without it.
    """

    api_key: str | None = field(default=None, repr=False)
    batch_token: str | None = field(default=None, repr=False)


class Launcher(Protocol):
    """Starts, finds, observes and ends workers. Every method is idempotent."""

    name: str
    """As in the parameter ``launcher`` and in a handle."""
    runs_as: str
    """What a worker is, for messages: ``"a pod"``."""
    on_this_machine: bool
    """Whether its workers see this machine's files, so that a model's folder can be checked here first."""
    drain_seconds: float
    """Grace for running requests of a worker whose ``engine`` says nothing about it."""

    def launch(self, spec: WorkerSpec, lease: Lease, *, ray: RayConnection | None) -> WorkerHandle:
        """Start the worker, or return the handle of the one this lease already started under that name.

        The intent is recorded in the lease before anything starts. Raises
        :class:`~airflow_arcadia.exceptions.WorkerError` when it cannot be started.
        """

    async def observe(self, handle: WorkerHandle) -> ProcessObservation:
        """Whether it lives; never raises for a worker that is gone."""

    def watch(self, handle: WorkerHandle) -> AsyncGenerator[ProcessObservation, None]:
        """What it does, now and after every change, without end; ``alive`` is None while unreadable."""

    def log_lines(self, handle: WorkerHandle) -> AsyncIterator[str]:
        """Its log as it grows, from the beginning, without end."""

    async def credentials(self, handle: WorkerHandle) -> Credentials:
        """What the worker was launched with.

        Raises :class:`~airflow_arcadia.exceptions.ArcadiaError` when it cannot be read: that is never "the
        worker asks for no key".
        """


@runtime_checkable
class Stops(Protocol):
    """What a launcher also has when deleting the lease does not end its workers by itself."""

    def stop(self, where: Mapping[str, object], *, grace_s: float) -> Sequence[str]:
        """End the worker and all it started. Idempotent.

        :param where: as the lease or the handle has it.
        :param grace_s: seconds it may take to end before it is killed.

        Returns what is still there afterwards, as text (empty: all gone).
        """
