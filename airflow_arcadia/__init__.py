"""Apache Airflow provider for distributed LLM batch inference with Ray, vLLM and FastChat.

The public names are importable from here; each is loaded when it is first used, so that the worker, which has
no Airflow, can import this package as well.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from airflow_arcadia.provider_info import get_provider_info

if TYPE_CHECKING:
    from airflow_arcadia.batch.spec import BatchOptions as BatchOptions
    from airflow_arcadia.hooks.arcadia import ArcadiaHook as ArcadiaHook
    from airflow_arcadia.launchers.arcadia_worker.settings import ArcadiaWorkerOptions as ArcadiaWorkerOptions
    from airflow_arcadia.launchers.pod.settings import PodOptions as PodOptions
    from airflow_arcadia.operators.batch import (
        ArcadiaBatchInferenceOperator as ArcadiaBatchInferenceOperator,
    )
    from airflow_arcadia.operators.batch import (
        ArcadiaCheckBatchInputOperator as ArcadiaCheckBatchInputOperator,
    )
    from airflow_arcadia.operators.ray_cluster import (
        ArcadiaProvisionRayClusterOperator as ArcadiaProvisionRayClusterOperator,
    )
    from airflow_arcadia.operators.reaper import ArcadiaReapWorkersOperator as ArcadiaReapWorkersOperator
    from airflow_arcadia.operators.worker import ArcadiaLaunchWorkerOperator as ArcadiaLaunchWorkerOperator
    from airflow_arcadia.operators.worker import ArcadiaReserveWorkerOperator as ArcadiaReserveWorkerOperator
    from airflow_arcadia.operators.worker import (
        ArcadiaTeardownWorkerOperator as ArcadiaTeardownWorkerOperator,
    )
    from airflow_arcadia.operators.worker import WarmWorkerParameters as WarmWorkerParameters
    from airflow_arcadia.ray_cluster.kuberay.settings import KubeRayOptions as KubeRayOptions
    from airflow_arcadia.sensors.ray_cluster import ArcadiaRayClusterSensor as ArcadiaRayClusterSensor
    from airflow_arcadia.sensors.worker import ArcadiaModelReadySensor as ArcadiaModelReadySensor
    from airflow_arcadia.task_groups.worker import ArcadiaWorkerGroup as ArcadiaWorkerGroup
    from airflow_arcadia.triggers.batch import ArcadiaBatchInferenceTrigger as ArcadiaBatchInferenceTrigger
    from airflow_arcadia.triggers.worker import ArcadiaModelReadyTrigger as ArcadiaModelReadyTrigger
    from airflow_arcadia.worker import EngineOptions as EngineOptions

__version__ = "0.1.0"

_PUBLIC = {
    "ArcadiaBatchInferenceOperator": "operators.batch",
    "ArcadiaBatchInferenceTrigger": "triggers.batch",
    "ArcadiaCheckBatchInputOperator": "operators.batch",
    "ArcadiaHook": "hooks.arcadia",
    "ArcadiaLaunchWorkerOperator": "operators.worker",
    "ArcadiaModelReadySensor": "sensors.worker",
    "ArcadiaModelReadyTrigger": "triggers.worker",
    "ArcadiaProvisionRayClusterOperator": "operators.ray_cluster",
    "ArcadiaRayClusterSensor": "sensors.ray_cluster",
    "ArcadiaReapWorkersOperator": "operators.reaper",
    "ArcadiaReserveWorkerOperator": "operators.worker",
    "ArcadiaTeardownWorkerOperator": "operators.worker",
    "ArcadiaWorkerGroup": "task_groups.worker",
    "ArcadiaWorkerOptions": "launchers.arcadia_worker.settings",
    "BatchOptions": "batch.spec",
    "EngineOptions": "worker",
    "KubeRayOptions": "ray_cluster.kuberay.settings",
    "PodOptions": "launchers.pod.settings",
    "WarmWorkerParameters": "operators.worker",
}
"""Public name → module that defines it."""

__all__ = ["__version__", "get_provider_info", *_PUBLIC]  # noqa: PLE0604 - all are text


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
