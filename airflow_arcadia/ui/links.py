"""Links on the page of every task of a worker: Ray dashboard, the worker, its log, the batch, the output.

Airflow's API server asks for them whenever the page is shown. A link is there while what it leads to is, and
only where a browser can reach it: an address inside a Kubernetes cluster, or of another machine's loopback
interface, is left out.
"""

from __future__ import annotations

import importlib
import ipaddress
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import quote, urlsplit

from airflow.configuration import conf
from airflow.sdk import BaseOperatorLink

from airflow_arcadia.ui.view import (
    BATCH_OPERATOR,
    ENDED_STATES,
    LAUNCH_OPERATOR,
    PROVISION_OPERATOR,
    RAY_SENSOR,
    Task,
)

if TYPE_CHECKING:
    from airflow.sdk.types import TaskInstanceKey

READY_OPERATOR = "ArcadiaModelReadySensor"
_IN_CLUSTER = (".svc", ".cluster.local")
_OPERATORS = {
    "airflow_arcadia.operators.batch": (BATCH_OPERATOR, "ArcadiaCheckBatchInputOperator"),
    "airflow_arcadia.operators.ray_cluster": (PROVISION_OPERATOR,),
    "airflow_arcadia.operators.worker": (
        "ArcadiaReserveWorkerOperator",
        LAUNCH_OPERATOR,
        "ArcadiaTeardownWorkerOperator",
    ),
    "airflow_arcadia.sensors.ray_cluster": (RAY_SENSOR,),
    "airflow_arcadia.sensors.worker": (READY_OPERATOR,),
}


def is_reachable(url: str, airflow_url: str) -> bool:
    """Whether a browser that reaches Airflow at ``airflow_url`` may reach ``url``."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme not in {"http", "https"} or not host or host.endswith(_IN_CLUSTER):
        return False
    if _is_loopback(host):
        return _is_loopback(urlsplit(airflow_url).hostname or "localhost")
    return "." in host or ":" in host  # a bare name is that of a service beside Airflow


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def links_of(
    task: Task, run: Sequence[Task], airflow_url: str, rendered: Mapping[str, Any] | None = None
) -> dict[str, str]:
    """Name → URL of every link of the task that leads somewhere now.

    :param run: every task of the run.
    :param airflow_url: ``[api] base_url``.
    :param rendered: the task's template fields, of a batch.
    """
    own = [one for one in run if one.group == task.group and one.map_index in {-1, task.map_index}]
    prefix = urlsplit(airflow_url).path.rstrip("/")
    found: dict[str, str] = {}
    ended = any(one.step == "teardown_worker" and one.state in ENDED_STATES for one in own)
    for one in own:
        value = one.value if isinstance(one.value, Mapping) else {}
        # A Ray cluster that the run did not make, and a worker that is kept warm, outlive the run.
        if one.operator in {PROVISION_OPERATOR, RAY_SENSOR} and not (ended and value.get("created")):
            found["Ray dashboard"] = str(value.get("dashboard_url") or "")
        if one.operator == LAUNCH_OPERATOR and not ended:
            found.setdefault("Worker API", f"{str(value.get('url') or '').rstrip('/')}/v1/models")
    found["Output"] = str((rendered or {}).get("output_uri") or "")
    found = {name: url for name, url in found.items() if is_reachable(url, airflow_url)}
    for one in own:
        if one.operator == READY_OPERATOR and one.started_at is not None and one.task_id != task.task_id:
            found.setdefault("Worker log", prefix + task_path(one))
        if one.operator == BATCH_OPERATOR and one.started_at is not None:
            found.setdefault("Batch", f"{prefix}{task_path(one)}/plugin/arcadia-batch")
    return found


def task_path(task: Task) -> str:
    """Path of the task instance's page."""
    where = f"/dags/{quote(task.dag_id)}/runs/{quote(task.run_id)}/tasks/{quote(task.task_id)}"
    return f"{where}/mapped/{task.map_index}" if task.map_index >= 0 else where


class ArcadiaLink(BaseOperatorLink):
    """One link, on the page of every task of a worker group."""

    name: ClassVar[str]

    @property
    def operators(self) -> list[type]:  # type: ignore[override]
        """What it is shown on; imported when Airflow asks, not by every component that loads the plugin."""
        return [
            getattr(importlib.import_module(module), name)
            for module, names in _OPERATORS.items()
            for name in names
        ]

    def get_link(self, operator: Any, *, ti_key: TaskInstanceKey) -> str:
        """The URL, or an empty string where there is nothing to be shown."""
        from airflow_arcadia.ui import database  # noqa: PLC0415 - needs Airflow's server side

        run = database.run_tasks([(ti_key.dag_id, ti_key.run_id)])
        key = (ti_key.dag_id, ti_key.run_id, ti_key.task_id, ti_key.map_index)
        task = next((one for one in run if (one.task_id, one.map_index) == key[2:]), None)
        if task is None:
            return ""
        is_output = self.name == "Output" and task.operator == BATCH_OPERATOR
        base = str(conf.get("api", "base_url", fallback="") or "")
        return links_of(task, run, base, database.rendered(*key) if is_output else None).get(self.name, "")


class RayDashboardLink(ArcadiaLink):
    """Opens the dashboard of the Ray cluster that the worker is placed on."""

    name = "Ray dashboard"


class WorkerLink(ArcadiaLink):
    """Opens the worker's own API."""

    name = "Worker API"


class WorkerLogLink(ArcadiaLink):
    """Opens the log of the task that waited for the model: it has the worker's own lines."""

    name = "Worker log"


class BatchLink(ArcadiaLink):
    """Opens the batch's tab."""

    name = "Batch"


class OutputLink(ArcadiaLink):
    """Opens the answers, where they are at a web address."""

    name = "Output"


LINKS = (RayDashboardLink(), WorkerLink(), WorkerLogLink(), BatchLink(), OutputLink())
