"""From a launch's parameters to the launcher, with everything that does not fit together met at the door."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from airflow_arcadia.exceptions import ArcadiaConfigError
from airflow_arcadia.launchers.arcadia_worker.launcher import CustomResourceLauncher
from airflow_arcadia.launchers.arcadia_worker.manifest import ray_cluster_index
from airflow_arcadia.launchers.arcadia_worker.settings import WorkerResourceSettings
from airflow_arcadia.launchers.pod.launcher import PodLauncher
from airflow_arcadia.launchers.pod.settings import PodSettings
from airflow_arcadia.launchers.process import ProcessLauncher
from airflow_arcadia.operators._pod_request import pod_request

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_arcadia.hooks.arcadia import ArcadiaHook
    from airflow_arcadia.launchers.base import Launcher
    from airflow_arcadia.operators.worker import ArcadiaLaunchWorkerOperator
    from airflow_arcadia.worker import WorkerSpec

_RUNS_AS = {
    ProcessLauncher.name: "a process of this machine",
    PodLauncher.name: "a pod",
    CustomResourceLauncher.name: "Arcadia's Worker",
}


def launcher_of(
    operator: ArcadiaLaunchWorkerOperator, hook: ArcadiaHook, chosen: str, spec: WorkerSpec, context: Context
) -> Launcher:
    """The launcher, ready to launch ``spec``. Raises :class:`ArcadiaConfigError` naming what does not fit.

    :param chosen: name of the launcher.
    """
    for name, value in (("pod", operator.pod), ("custom_resource", operator.custom_resource)):
        if value and chosen != name:
            raise ArcadiaConfigError(
                f"{name} is set, but the worker is {_RUNS_AS[chosen]}.",
                what_to_do=f"Leave {name} out, or use launcher={name!r} with a connection that has "
                "kubernetes_conn_id.",
            )
    if chosen == CustomResourceLauncher.name:
        return hook.launcher(chosen, settings=_resource_settings(operator, hook, spec))
    if isinstance(operator.model, Mapping):
        raise ArcadiaConfigError(
            f"model is a reference to Arcadia's Model, but the worker is {_RUNS_AS[chosen]}.",
            what_to_do="Set model to a path or a repository id.",
        )
    if chosen == ProcessLauncher.name:
        return hook.launcher(chosen)
    settings = PodSettings.parse(operator.pod)
    request = pod_request(
        settings, context, task_id=operator.task_id, kubernetes_conn_id=hook.kubernetes_conn_id
    )
    return hook.launcher(chosen, settings=settings, request=request)


def _resource_settings(
    operator: ArcadiaLaunchWorkerOperator, hook: ArcadiaHook, spec: WorkerSpec
) -> WorkerResourceSettings:
    settings = WorkerResourceSettings.parse(operator.custom_resource)
    if operator.served_model_name:
        raise ArcadiaConfigError(
            f"served_model_name is {operator.served_model_name!r}, but Arcadia serves it under its uid.",
            what_to_do="Leave served_model_name out; the handle has the name.",
        )
    if operator.index and settings.existing:
        raise ArcadiaConfigError(
            f"Several workers are asked for, but Worker {settings.name} is one.",
            what_to_do="Set num_workers to 1.",
        )
    if operator.index and settings.name:
        settings = replace(settings, name=f"{settings.name}-{operator.index}")
    if isinstance(operator.model, Mapping):
        settings = replace(settings, model=operator.model)
    if not settings.existing and (spec.uses_ray or hook.config.ray_clusters):
        # Arcadia's operator looks it up unchecked: one that is out of range ends it.
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


def parse_limit(name: str, value: int | str | None) -> int | None:
    """An engine limit as given or as a template rendered it; empty or ``None`` text means "not set"."""
    text = str(value).strip() if value is not None else ""
    if text in {"", "None"}:
        return None
    if not text.isdecimal():
        raise ArcadiaConfigError(f"{name} is {value!r}.", what_to_do=f"Set {name} to a whole number.")
    return int(text)
