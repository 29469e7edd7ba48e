"""Reads what a worker's pod was given as secrets."""

from __future__ import annotations

import base64

from airflow_arcadia.kubernetes.api import Session
from airflow_arcadia.kubernetes.kinds import SECRET
from airflow_arcadia.launchers.pod.manifest import object_name


async def read_secret(session: Session, worker: str, key: str) -> str | None:
    """One value of the worker's Secret; None when there is none."""
    found = await session.get(SECRET, object_name(worker))
    value = ((found or {}).get("data") or {}).get(key)
    return base64.b64decode(value).decode() if value else None
