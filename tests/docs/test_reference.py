"""The reference has every public name, parameter, option, field, variable, metric and route."""

from __future__ import annotations

import dataclasses
import inspect
import re
from typing import Any

import pytest

import airflow_arcadia
from airflow_arcadia.batch.progress import Progress
from airflow_arcadia.batch.spec import BatchSpec, BatchSummary
from airflow_arcadia.launchers.arcadia_worker.settings import WorkerResourceSettings
from airflow_arcadia.launchers.pod.settings import PodSettings
from airflow_arcadia.provider_info import get_provider_info
from airflow_arcadia.ray_cluster.kuberay.settings import KubeRaySpec
from airflow_arcadia.runtime.access import OPEN_PATHS
from airflow_arcadia.runtime.batch_routes import PREFIX
from airflow_arcadia.runtime.worker_metrics import WorkerMetrics
from airflow_arcadia.worker import (
    _ONLY_READ,
    VARIABLES,
    PlacedWorker,
    RayConnection,
    WorkerHandle,
    WorkerStatus,
)
from tests.conftest import ROOT
from tests.docs import pages as _path  # noqa: F401 - puts the extensions on the path

REFERENCE = {
    page.stem: page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "reference").glob("*.md")
}
ALL = "\n".join(REFERENCE.values())
CLASSES = [name for name in airflow_arcadia.__all__ if name.startswith("Arcadia") and "Options" not in name]
OPTIONS = {
    "EngineOptions": PlacedWorker,
    "BatchOptions": BatchSpec,
    "PodOptions": PodSettings,
    "KubeRayOptions": KubeRaySpec,
    "ArcadiaWorkerOptions": WorkerResourceSettings,
}
TOLD_IN_PROSE = {"num_cpus"}
"""Keys of ``ray_cluster_spec`` that only a local head takes."""


def documented(cls: type[Any]) -> dict[str, str]:
    from documented_fields import meanings

    return meanings(cls)


@pytest.mark.parametrize("name", CLASSES)
def test_a_public_class_is_in_the_reference_with_all_its_parameters(name: str):
    from documented_fields import parameters_of

    assert re.search(rf"autoclass:: airflow_arcadia\.{name}$", ALL, re.MULTILINE)
    cls = getattr(airflow_arcadia, name)
    assert set(parameters_of(cls)) - set(documented(cls)) == set()


def test_the_options_are_those_that_are_public():
    assert set(OPTIONS) == {name for name in airflow_arcadia.__all__ if name.endswith("Options")}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_are_in_the_reference_with_all_their_keys(name: str):
    assert f"options:: airflow_arcadia.{name} " in REFERENCE["options"]
    keys = set(getattr(airflow_arcadia, name).__annotations__)
    fields = {field.name for field in dataclasses.fields(OPTIONS[name])}
    assert keys - fields <= TOLD_IN_PROSE
    assert keys & fields - set(documented(OPTIONS[name])) == set()
    assert all(f"`{key}`" in REFERENCE["options"] for key in keys - fields)


@pytest.mark.parametrize("cls", [BatchSummary, Progress, WorkerHandle, RayConnection])
def test_a_result_is_in_the_reference_with_all_its_fields(cls: type[Any]):
    assert f".{cls.__name__}\n" in REFERENCE["results"]
    assert {field.name for field in dataclasses.fields(cls)} - set(documented(cls)) == set()


def test_every_variable_of_the_worker_says_what_it_is():
    told = documented(PlacedWorker)
    assert {*VARIABLES, *_ONLY_READ.values()} - set(told) == set()
    assert ".. environment::" in REFERENCE["environment"]


def test_every_field_of_the_connection_says_what_it_is():
    (kind,) = get_provider_info()["connection-types"]
    assert all(field["description"] for field in kind["conn-fields"].values())
    assert ".. connection-fields::" in REFERENCE["connection"]


def test_every_metric_and_state_of_a_worker_is_explained():
    text = WorkerMetrics(WorkerStatus.STARTING, "the model is being loaded").text().decode()
    names = set(re.findall(r"^# TYPE (\w+)", text, re.MULTILINE))
    states = set(re.findall(r'status="(\w+)"', text))
    assert names
    assert states
    assert {f"`{name}`" for name in names | states} <= set(re.findall(r"`\w+`", REFERENCE["metrics"]))


def test_every_route_of_ours_is_in_the_reference():
    from airflow_arcadia.runtime.fastchat import routes

    paths = set(re.findall(r'"(/\w+)": self', inspect.getsource(routes.FastChatRoutes)))
    assert paths
    for path in paths | OPEN_PATHS | {routes.STATUS_PATH, PREFIX}:
        assert f"{path}`" in REFERENCE["rest"], path


def test_the_defaults_and_types_are_words_that_a_reader_knows():
    from documented_fields import fields_of

    shown = {field.name: field for cls in OPTIONS.values() for field in fields_of(cls)}
    assert shown["max_in_flight"].type == "integer, 1 or more"
    assert shown["ordering"].type == "``'prefix'`` or ``'input'``"
    assert shown["ordering"].default == "``'prefix'``"
    assert shown["tolerations"].default == "none"
    assert not any(
        re.search(r"Annotated|Literal|Mapping|Sequence|tuple", field.type) for field in shown.values()
    )
