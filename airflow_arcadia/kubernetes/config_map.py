"""arcadia-config where Arcadia itself keeps it: in a ConfigMap."""

from __future__ import annotations

from airflow_arcadia.exceptions import ArcadiaConfigError
from airflow_arcadia.kubernetes.api import Session
from airflow_arcadia.kubernetes.kinds import CONFIG_MAP

KEY = "config"
"""Data key under which Arcadia keeps the YAML."""


async def read_config_map(session: Session, name: str) -> str:
    """The YAML text of arcadia-config. Raises :class:`ArcadiaConfigError` when it is not there."""
    found = await session.get(CONFIG_MAP, name)
    if found is None:
        raise ArcadiaConfigError(
            f"Namespace {session.namespace} has no ConfigMap {name!r}.",
            what_to_do="Correct arcadia_config_map of the connection; Arcadia's own is arcadia-config.",
        )
    data = found.get("data") or {}
    if KEY not in data:
        raise ArcadiaConfigError(
            f"ConfigMap {name!r} has no key {KEY!r}; it has {', '.join(sorted(data)) or 'none'}.",
            what_to_do=f"Put arcadia-config's YAML under {KEY!r}.",
        )
    return str(data[KEY])
