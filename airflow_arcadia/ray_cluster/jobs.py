"""Tag Ray jobs with the lease of their worker, and find the placement groups of a lease by that tag."""

from __future__ import annotations

import json

from airflow_arcadia.ray_dashboard import PlacementGroup, RayDashboard

METADATA_KEY = "arcadia_lease"
JOB_CONFIG_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Environment variable a Ray driver reads its job's metadata from (``ray._private.ray_constants``)."""


def job_environment(lease: str) -> dict[str, str]:
    """Environment under which a Ray driver's job carries the lease's name."""
    return {JOB_CONFIG_VARIABLE: json.dumps({"metadata": {METADATA_KEY: lease}})}


async def groups_of_lease(dashboard: RayDashboard, lease: str) -> list[PlacementGroup]:
    """Placement groups that jobs of this lease still hold.

    Raises :class:`~airflow_arcadia.exceptions.RayClusterError` when the cluster cannot be read.
    """
    jobs = await dashboard.jobs_with(METADATA_KEY, lease)
    groups = await dashboard.placement_groups() if jobs else ()
    return [group for group in groups if group.state != "REMOVED" and group.job_id in jobs]
