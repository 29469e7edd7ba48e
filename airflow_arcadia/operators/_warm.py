"""What operators need of warm workers: which worker a run asks for, and whose turn it is to launch it."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow_arcadia.exceptions import ArcadiaConfigError
from airflow_arcadia.hooks.arcadia import ArcadiaHook
from airflow_arcadia.hooks.storage import storage_options
from airflow_arcadia.launchers.arcadia_worker.settings import WorkerResourceSettings
from airflow_arcadia.launchers.pod.launcher import PodLauncher
from airflow_arcadia.launchers.pod.settings import PodSettings
from airflow_arcadia.operators._launcher import LaunchRequest
from airflow_arcadia.validation import Count, is_rendered_later, mapping, parse
from airflow_arcadia.warm import KeepWarm, Request, parse_keep_warm

if TYPE_CHECKING:
    from airflow_arcadia.launchers.warm import Turn

_KEY_LENGTH = 16
_HASH_ROUNDS = 100_000


@dataclass(frozen=True)
class _Cluster:
    """Parameters of ``ArcadiaProvisionRayClusterOperator`` that a worker depends on."""

    ray_cluster: Any = 0
    num_workers: Count = 1
    create: str = "never"
    ray_cluster_spec: Mapping[str, Any] = field(default_factory=dict)


_CLUSTER = {item.name for item in fields(_Cluster)}
_LAUNCH = {item.name for item in fields(LaunchRequest)} - {"lease", "ray", "index"}


def check_keep_warm(keep_warm: KeepWarm, worker: object) -> None:
    """Check what is known when the DAG is parsed. Raises :class:`ArcadiaConfigError`."""
    later = not isinstance(keep_warm, timedelta) and is_rendered_later(keep_warm)
    if not later and parse_keep_warm(keep_warm) == 0:
        return
    if worker is None:
        raise ArcadiaConfigError(
            "keep_warm is set, but what the worker is made from is not known when it is reserved.",
            what_to_do="Give worker={'model': …} with the parameters that the launch gets, or use "
            "ArcadiaWorkerGroup, which does.",
        )
    if isinstance(worker, Mapping):
        mapping(worker, "worker", sorted(_LAUNCH | _CLUSTER))


def warm_request(hook: ArcadiaHook, worker: object) -> Request:
    """What the run asks for. Runs whose request has the same key share a worker.

    Raises :class:`ArcadiaConfigError` naming the parameter at fault.
    """
    given = mapping(worker, "worker", sorted(_LAUNCH | _CLUSTER))
    launch = parse(LaunchRequest, {k: v for k, v in given.items() if k in _LAUNCH}, "worker", lease="warm")
    cluster = parse(_Cluster, {k: v for k, v in given.items() if k in _CLUSTER}, "worker")
    kind, config = hook.launcher_type(launch.launcher), hook.config
    spec = launch.worker_spec(
        None, controller_address=config.gateway.controller, drain_seconds=kind.drain_seconds
    )
    pod = PodSettings.parse(launch.pod, startup_timeout=launch.startup_timeout)
    resource = WorkerResourceSettings.parse(launch.custom_resource)
    if isinstance(launch.model, Mapping):
        resource = dataclasses.replace(resource, model=launch.model)
    storage = json.dumps(storage_options(launch.storage_conn_id), sort_keys=True)
    key = _digest(
        {
            "version": importlib.metadata.version("airflow-provider-arcadia"),
            "connection": hook.arcadia_conn_id,
            "launcher": kind.name,
            "python": hook.worker_python if kind.on_this_machine else "",
            "config": dataclasses.asdict(config),
            "secrets": _digest_of_secrets(hook.api_key, hook.ray_token, hook.hf_token, storage),
            "worker": dataclasses.asdict(spec),
            "port": launch.port,
            "pod": dataclasses.asdict(pod),
            "custom_resource": dataclasses.asdict(resource),
            "ray": dataclasses.asdict(cluster),
        }
    )
    label = re.sub(r"[^a-z0-9]+", "-", spec.served_model_name.lower()).strip("-")[:24]
    lifetime_s = pod.active_deadline_seconds if kind is PodLauncher else None
    return Request(key, label, cluster.num_workers, lifetime_s)


def warm_turn(hook: ArcadiaHook, run_lease: str, log: Any) -> Turn | None:
    """Whether the run launches the warm worker that it uses, or another has; None where it uses none.

    Waits while another run launches it.
    """
    run = hook.leases.read(run_lease)
    if run is None or run.warm_name is None:
        return None
    return hook.warm_workers.turn(run, say=lambda text: log.info("%s", text))


def _digest(value: object) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:_KEY_LENGTH]


def _digest_of_secrets(*secrets: str | None) -> str:
    """Changes with the secrets; slow to compute, since whoever may read leases could guess at a weak one."""
    text = json.dumps(secrets)
    return hashlib.pbkdf2_hmac("sha256", text.encode(), b"airflow-arcadia", _HASH_ROUNDS).hex()
