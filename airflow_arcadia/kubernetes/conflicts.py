"""Read, change and write back an object that others write to as well."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from airflow_arcadia.kubernetes.errors import KubernetesConflictError

T = TypeVar("T")
ATTEMPTS = 10


async def retry_on_conflict(attempt: Callable[[], Awaitable[T]]) -> T:
    """The result of ``attempt``, which reads the object anew each time.

    Raises :class:`KubernetesConflictError` when every one of :data:`ATTEMPTS` met another writer.
    """
    for _ in range(ATTEMPTS - 1):
        try:
            return await attempt()
        except KubernetesConflictError:
            continue
    return await attempt()
