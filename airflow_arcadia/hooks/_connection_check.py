"""Check a connection as the *Test* button of the connection form does: read everything, change nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from airflow_arcadia.config import ArcadiaConfig, RayCluster
from airflow_arcadia.exceptions import ArcadiaError, RayClusterUnreachableError
from airflow_arcadia.kubernetes.access_review import (
    CUSTOM_RESOURCE_RIGHTS,
    RAY_CLUSTER_RIGHTS,
    WORKER_RIGHTS,
    Right,
    missing_rights,
)
from airflow_arcadia.kubernetes.api import Session
from airflow_arcadia.kubernetes.kinds import RAY_CLUSTER, WORKER
from airflow_arcadia.ray_dashboard import ClusterFacts, RayDashboard

if TYPE_CHECKING:
    from airflow_arcadia.hooks.arcadia import ArcadiaHook

API_PATIENCE_S = 3.0
"""How long the Test waits for an API server that is away: a person is waiting for its answer."""


@dataclass(frozen=True)
class Finding:
    """One line of the result.

    :param ok: False for what makes the connection unusable; a note is True.
    """

    ok: bool
    text: str


def summarize(findings: list[Finding]) -> tuple[bool, str]:
    """What the *Test* button shows: whether all is well, and a sentence for each finding, faults first."""
    ordered = sorted(findings, key=lambda finding: finding.ok)
    return all(finding.ok for finding in findings), " ".join(finding.text for finding in ordered)


def check_connection(hook: ArcadiaHook, versions: Callable[[str], object]) -> list[Finding]:
    """Everything the connection names, asked once.

    :param versions: reads the Ray and Python versions of a worker's environment.
    """
    findings = []
    try:
        config = hook.config
    except (ArcadiaError, OSError) as error:
        findings.append(Finding(ok=False, text=str(error)))
    else:
        findings += check_config(config, hook.ray_token)
    if hook.kubernetes_conn_id:
        findings += [*check_kubernetes(hook), *check_api_key(hook)]
    else:
        findings += check_machine(hook, versions)
    return findings


def check_config(config: ArcadiaConfig, ray_token: str | None) -> list[Finding]:
    """What arcadia-config lists, and what each of its Ray clusters answers."""
    names = ", ".join(cluster.name for cluster in config.ray_clusters) or "none"
    controller = config.gateway.controller or "none"
    listed = Finding(
        ok=True, text=f"arcadia-config is valid: Ray clusters {names}; FastChat controller {controller}."
    )

    async def ask_all() -> list[Finding]:
        return list(await asyncio.gather(*(_ask(cluster, ray_token) for cluster in config.ray_clusters)))

    return [listed, *asyncio.run(ask_all())]


async def _ask(cluster: RayCluster, ray_token: str | None) -> Finding:
    try:
        facts = await RayDashboard(cluster.dashboard_url, token=ray_token).facts()
    except RayClusterUnreachableError as error:
        if cluster.is_loopback:
            text = f"Ray cluster {cluster.name} is not running; create='if_missing' starts a local head."
            return Finding(ok=True, text=text)
        return Finding(ok=False, text=str(error))
    except ArcadiaError as error:
        return Finding(ok=False, text=str(error))
    return _judge(cluster, facts)


def _judge(cluster: RayCluster, facts: ClusterFacts) -> Finding:
    stated = [
        (what, configured, found)
        for what, configured, found in (
            ("pythonVersion", cluster.python_version, facts.python_version),
            ("rayVersion", cluster.ray_version, facts.ray_version),
        )
        if configured and configured != found
    ]
    if stated:
        wrong = " and ".join(
            f"{what} {configured}, but it runs {found}" for what, configured, found in stated
        )
        return Finding(ok=False, text=f"arcadia-config states for Ray cluster {cluster.name} {wrong}.")
    return Finding(
        ok=True,
        text=f"Ray cluster {cluster.name} answers: Ray {facts.ray_version}, Python {facts.python_version}, "
        f"{facts.gpus_free:g} of {facts.gpus_total:g} GPUs free.",
    )


def check_machine(hook: ArcadiaHook, versions: Callable[[str], object]) -> list[Finding]:
    """What workers as local processes need: their Python, and a folder for leases and logs."""
    return [_python(hook.worker_python, versions), _folder(hook.store.root)]


def _python(path: str, versions: Callable[[str], object]) -> Finding:
    try:
        found = versions(path)
    except ArcadiaError as error:
        return Finding(ok=False, text=str(error))
    told = ", ".join(f"{what.title()} {value}" for what, value in vars(found).items())
    return Finding(ok=True, text=f"The worker's Python {path} has {told}.")


def _folder(root: Path) -> Finding:
    existing = root
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        return Finding(
            ok=False, text=f"State directory {root}: {existing} is not a folder. Correct state_dir."
        )
    return Finding(ok=True, text=f"State directory: {root}.")


def check_kubernetes(hook: ArcadiaHook) -> list[Finding]:
    """Which rights the credentials have, and which operators the cluster has."""
    try:
        return hook.kubernetes.with_patience(API_PATIENCE_S).run(_ask_cluster)
    except ArcadiaError as error:
        return [Finding(ok=False, text=str(error))]


def check_api_key(hook: ArcadiaHook) -> Iterator[Finding]:
    """What is worth knowing of the API key of workers in a cluster."""
    try:
        generates = hook.generates_api_keys
    except ArcadiaError as error:
        yield Finding(ok=False, text=str(error))
        return
    if not generates and not hook.api_key:
        yield Finding(ok=True, text="Workers serve without an API key: generate_api_key is false.")


async def _ask_cluster(session: Session) -> list[Finding]:
    lacking = await missing_rights(session, WORKER_RIGHTS)
    if lacking:
        pods = Finding(
            ok=False,
            text=f"In namespace {session.namespace} Airflow may not {_listed(lacking)}. "
            "Add these to its Role (see deploy/rbac.yaml).",
        )
    else:
        pods = Finding(ok=True, text=f"Airflow may run worker pods in namespace {session.namespace}.")
    ray = await session.serves(RAY_CLUSTER), await missing_rights(session, RAY_CLUSTER_RIGHTS)
    worker = await session.serves(WORKER), await missing_rights(session, CUSTOM_RESOURCE_RIGHTS)
    return [
        pods,
        *_optional("KubeRay", "Ray clusters for a run", *ray),
        *_optional("Arcadia's operator", "launcher='custom_resource'", *worker),
    ]


def _optional(operator: str, use: str, served: bool, lacking: list[Right]) -> Iterator[Finding]:
    if not served:
        yield Finding(ok=True, text=f"{operator} is not installed: no {use}.")
    elif lacking:
        yield Finding(
            ok=True, text=f"{operator} is installed, but Airflow may not {_listed(lacking)}: no {use}."
        )
    else:
        yield Finding(ok=True, text=f"{operator} is installed: {use} can be used.")


def _listed(rights: list[Right]) -> str:
    return ", ".join(map(str, rights))
