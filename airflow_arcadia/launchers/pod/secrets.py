"""Reads what a worker was given as secrets."""

from __future__ import annotations

import base64

from airflow_arcadia.exceptions import WorkerLostError
from airflow_arcadia.kubernetes.api import Session
from airflow_arcadia.kubernetes.kinds import SECRET
from airflow_arcadia.kubernetes.pod_template import API_KEY, BATCH_TOKEN
from airflow_arcadia.launchers.base import Credentials


async def read_credentials(session: Session, name: str) -> Credentials:
    """The API key and the batch token in the Secret of that name.

    Raises :class:`WorkerLostError` when there is no such Secret, and
    :class:`~airflow_arcadia.kubernetes.errors.KubernetesError` when it cannot be read.
    """
    found = await session.get(SECRET, name)
    if found is None:
        raise WorkerLostError(
            f"Secret {session.namespace}/{name}, which holds the worker's API key, does not exist.",
            what_to_do="It belongs to the run's lease and ends with it: clear the run from its reserve task, "
            "which makes a new worker.",
        )
    data = found.get("data") or {}

    def value(key: str) -> str | None:
        return base64.b64decode(data[key]).decode() if data.get(key) else None

    return Credentials(value(API_KEY), value(BATCH_TOKEN))
