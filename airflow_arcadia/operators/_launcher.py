"""Validates a launch's parameters; makes the worker's spec and the launcher from them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal

from airflow_arcadia.exceptions import ArcadiaConfigError
from airflow_arcadia.hooks.storage import storage_options
from airflow_arcadia.kubernetes.pod_template import STORAGE_OPTIONS
from airflow_arcadia.launchers.arcadia_worker.launcher import CustomResourceLauncher
from airflow_arcadia.launchers.arcadia_worker.manifest import ray_cluster_index
from airflow_arcadia.launchers.arcadia_worker.settings import WorkerResourceSettings
from airflow_arcadia.launchers.pod.launcher import PodLauncher
from airflow_arcadia.launchers.pod.settings import PodSettings
from airflow_arcadia.operators._pod_request import pod_request
from airflow_arcadia.validation import (
    Index,
    PortOrAny,
    PositiveSeconds,
    Seconds,
    Variables,
    check_literals,
    is_rendered_later,
    mapping,
    parse,
)
from airflow_arcadia.worker import (
    DEFAULT_STARTUP_TIMEOUT_S,
    ENGINE,
    RayConnection,
    WorkerSpec,
    parse_num_gpus,
)

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_arcadia.hooks.arcadia import ArcadiaHook
    from airflow_arcadia.launchers.base import Launcher


@dataclass(frozen=True)
class _Idle:
    idle_timeout: Seconds | None = None


@dataclass(frozen=True)
class LaunchRequest:
    """What ``ArcadiaLaunchWorkerOperator`` was asked for; its parameters have the same names.

    ``num_gpus``, and the keys of ``engine``, ``pod`` and ``custom_resource``, are validated where they are
    used.
    """

    lease: str
    model: str | Mapping[str, Any]
    num_gpus: Any = 1
    ray: Mapping[str, Any] | None = None
    served_model_name: str = ""
    launcher: Literal["process", "pod", "custom_resource"] | None = None
    engine: Mapping[str, Any] | None = None
    pod: Mapping[str, Any] | None = None
    custom_resource: Mapping[str, Any] | None = None
    port: PortOrAny = 0
    index: Index = 0
    startup_timeout: PositiveSeconds = DEFAULT_STARTUP_TIMEOUT_S
    additional_envs: Variables = field(default_factory=dict)
    storage_conn_id: str | None = None

    @classmethod
    def of(cls, operator: object) -> LaunchRequest:
        """The rendered parameters. Raises :class:`ArcadiaConfigError` naming the one at fault."""
        return parse(cls, _values(operator), "")

    @staticmethod
    def check_literals(operator: object) -> None:
        """Check what is known when the DAG is parsed. Raises as :meth:`of`."""
        values = _values(operator)
        check_literals(LaunchRequest, values, "")
        if not is_rendered_later(values["num_gpus"]):
            parse_num_gpus(values["num_gpus"])
        check_literals(WorkerSpec, values["engine"], "engine", names=ENGINE)
        PodSettings.check_literals(values["pod"])
        WorkerResourceSettings.check_literals(values["custom_resource"])

    @property
    def name(self) -> str:
        """The worker's name, which the lease and its number make."""
        return f"{self.lease}-{self.index}" if self.index else self.lease

    def under(self, lease: str, *, keep_s: float) -> LaunchRequest:
        """The request for a warm worker: under its own lease, and never idle for too short a time.

        How long it is kept without a request, the lease alone decides, unless ``idle_timeout`` says longer.
        """
        engine = mapping(self.engine, "engine")
        idle_timeout = parse(_Idle, {"idle_timeout": engine.get("idle_timeout")}, "engine").idle_timeout
        engine["idle_timeout"] = max(idle_timeout, keep_s) if idle_timeout else 0.0
        return replace(self, lease=lease, engine=engine)

    def worker_spec(
        self, ray: RayConnection | None, *, controller_address: str | None, drain_seconds: float
    ) -> WorkerSpec:
        """What the worker serves. Raises :class:`ArcadiaConfigError` naming the parameter at fault.

        :param drain_seconds: the launcher's, for an ``engine`` that says nothing about it.
        """
        envs = dict(self.additional_envs)
        return parse(
            WorkerSpec,
            self.engine,
            "engine",
            names=ENGINE,
            name=self.name,
            model=model_name(self.model),
            served_model_name=self.served_model_name,
            num_gpus=parse_num_gpus(envs.get("NUMBER_GPUS", self.num_gpus)),
            ray_cluster_index=ray.index if ray else 0,
            ray_address=ray.address if ray else None,
            ray_dashboard_url=ray.dashboard_url if ray else None,
            ray_version=ray.ray_version if ray else None,
            python_version=ray.python_version if ray else None,
            controller_address=controller_address,
            drain_seconds=drain_seconds,
            additional_envs=envs,
        )


def launcher_of(
    request: LaunchRequest, spec: WorkerSpec, hook: ArcadiaHook, context: Context, *, task_id: str
) -> Launcher:
    """The launcher, ready to launch ``spec``. Raises :class:`ArcadiaConfigError` naming what does not fit."""
    kind = hook.launcher_type(request.launcher)
    _check_fits(request, kind)
    if kind is CustomResourceLauncher:
        return hook.custom_resource_launcher(_resource_settings(request, hook, spec))
    if isinstance(request.model, Mapping):
        raise ArcadiaConfigError(
            f"model is a reference to Arcadia's Model, but the worker is {kind.runs_as}.",
            what_to_do="Set model to a path or a repository id.",
        )
    if kind is PodLauncher:
        settings = PodSettings.parse(request.pod, startup_timeout=request.startup_timeout)
        last_change = pod_request(
            settings, context, task_id=task_id, kubernetes_conn_id=hook.kubernetes_conn_id
        )
        return hook.pod_launcher(settings, last_change, _storage_secret(request))
    return hook.process_launcher(request.port, _storage_secret(request))


def _storage_secret(request: LaunchRequest) -> dict[str, str]:
    """What the worker reads and writes object stores with, as one more of its secrets."""
    options = storage_options(request.storage_conn_id)
    return {STORAGE_OPTIONS: json.dumps(options)} if options else {}


def _check_fits(request: LaunchRequest, kind: type[Launcher]) -> None:
    """Refuse a parameter of another launcher: it would be ignored."""
    if request.storage_conn_id and kind is CustomResourceLauncher:
        raise ArcadiaConfigError(
            f"storage_conn_id is set, but the worker is {kind.runs_as}, which is given no secrets of ours.",
            what_to_do="Give Arcadia's runner the store's credentials and leave storage_conn_id out, or use "
            "launcher='pod'.",
        )
    for name, value in (("pod", request.pod), ("custom_resource", request.custom_resource)):
        if value and kind.name != name:
            raise ArcadiaConfigError(
                f"{name} is set, but the worker is {kind.runs_as}.",
                what_to_do=f"Leave {name} out, or use launcher={name!r} with a connection that has "
                "kubernetes_conn_id.",
            )
    if request.port and not kind.on_this_machine:
        instead = " and give it as pod={'port': …}" if kind is PodLauncher else ""
        raise ArcadiaConfigError(
            f"port is set, but the worker is {kind.runs_as}.", what_to_do=f"Leave port out{instead}."
        )


def _resource_settings(request: LaunchRequest, hook: ArcadiaHook, spec: WorkerSpec) -> WorkerResourceSettings:
    settings = WorkerResourceSettings.parse(request.custom_resource)
    if request.served_model_name:
        raise ArcadiaConfigError(
            f"served_model_name is {request.served_model_name!r}, but Arcadia serves it under its uid.",
            what_to_do="Leave served_model_name out; the handle has the name.",
        )
    if request.index and settings.existing:
        raise ArcadiaConfigError(
            f"Several workers are asked for, but Worker {settings.name} is one.",
            what_to_do="Set num_workers to 1.",
        )
    if request.index and settings.name:
        settings = replace(settings, name=f"{settings.name}-{request.index}")
    if isinstance(request.model, Mapping):
        settings = replace(settings, model=request.model)
    if not settings.existing and (spec.uses_ray or hook.config.ray_clusters):
        # Arcadia's operator does not validate the index: one that is out of range makes it crash.
        hook.config.select(ray_cluster_index(spec, settings))
    return settings


def model_name(model: str | Mapping[str, Any]) -> str:
    """The model's path, repository id, or the name of Arcadia's Model.

    Raises :class:`ArcadiaConfigError` for a reference without a name.
    """
    if not isinstance(model, Mapping):
        return model
    if not model.get("name"):
        raise ArcadiaConfigError("model is a reference without a name.", what_to_do="Name Arcadia's Model.")
    return str(model["name"])


def _values(operator: object) -> dict[str, Any]:
    return {f.name: getattr(operator, f.name) for f in fields(LaunchRequest)}
