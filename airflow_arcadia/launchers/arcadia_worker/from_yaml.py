"""Read a Worker manifest as Arcadia's documentation has it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field

from airflow_arcadia import strict_yaml
from airflow_arcadia.exceptions import ArcadiaConfigError
from airflow_arcadia.kubernetes.kinds import WORKER
from airflow_arcadia.launchers.arcadia_worker.settings import (
    GPUS,
    INDEX,
    WorkerResourceSettings,
    parse_index,
)
from airflow_arcadia.validation import mapping, parse
from airflow_arcadia.worker import parse_num_gpus

_TOP = ("apiVersion", "kind", "metadata", "spec", "status")
_METADATA = ("name", "namespace", "labels", "annotations")
"""What a manifest says; the rest, as ``kubectl get -o yaml`` shows it, is the API server's."""


@dataclass(frozen=True)
class _Spec:
    """The ``spec`` of a Worker, by the names of :class:`WorkerResourceSettings`."""

    type: str | None = None
    resources: Mapping[str, Any] | None = None
    match_expressions: Sequence[Mapping[str, Any]] = ()
    storage: Mapping[str, Any] | None = None
    loader: Mapping[str, Any] | None = None
    runner: Mapping[str, Any] | None = None
    creator: str | None = None
    display_name: str | None = None
    description: str | None = None
    additional_envs: Sequence[Mapping[str, Any]] = ()
    model: Mapping[str, Any] | None = None
    replicas: Annotated[int, Field(ge=0, le=1)] = 1


_SPEC_KEYS = {
    "type": "type",
    "resources": "resources",
    "matchExpressions": "match_expressions",
    "storage": "storage",
    "loader": "loader",
    "runner": "runner",
    "creator": "creator",
    "displayName": "display_name",
    "description": "description",
    "additionalEnvs": "additional_envs",
    "model": "model",
    "replicas": "replicas",
}
_PASSED_ON = tuple(
    name for name in _SPEC_KEYS.values() if name not in {"additional_envs", "model", "replicas"}
)
"""Fields that become settings as they stand."""


def read_worker_manifest(
    path: str | os.PathLike[str], overrides: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Parameters of ``ArcadiaLaunchWorkerOperator`` that make the Worker of that file.

    The file may hold other resources, such as the Worker's Model: they are left to ``kubectl apply``.

    :param overrides: settings that win over the manifest's, key by key, before it is validated.

    Raises :class:`ArcadiaConfigError` naming the key at fault.
    """
    where = os.fspath(path)
    try:
        documents = strict_yaml.load_all(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ArcadiaConfigError(
            f"Worker manifest {where!r} cannot be read: {error}.", what_to_do="Correct the path."
        ) from error
    except yaml.YAMLError as error:
        raise ArcadiaConfigError(
            f"Worker manifest {where!r} is not valid YAML: {error}.", what_to_do="Correct the file."
        ) from error
    if len(documents) == 1:
        return parse_worker_manifest(documents[0], overrides)
    workers = [item for item in documents if isinstance(item, Mapping) and item.get("kind") == WORKER.kind]
    if len(workers) != 1:
        raise ArcadiaConfigError(
            f"Worker manifest {where!r} has {len(workers)} Workers in {len(documents)} documents.",
            what_to_do="Give a file with one Worker.",
        )
    return parse_worker_manifest(workers[0], overrides)


def parse_worker_manifest(raw: object, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """As :func:`read_worker_manifest`, from the decoded document."""
    document = mapping(raw, "manifest", _TOP)
    for key, wanted in (("apiVersion", WORKER.api_version), ("kind", WORKER.kind)):
        if document.get(key) != wanted:
            raise ArcadiaConfigError(
                f"{key} of the manifest is {document.get(key)!r}.", what_to_do=f"Set {key} to {wanted}."
            )
    metadata = mapping(document.get("metadata"), "metadata")
    spec = parse(_Spec, document.get("spec"), "spec", names=_SPEC_KEYS)
    settings = {key: metadata[key] for key in _METADATA if metadata.get(key)}
    settings |= {name: value for name in _PASSED_ON if (value := getattr(spec, name))}
    found: dict[str, Any] = {"launcher": "custom_resource", "num_gpus": 1, "custom_resource": settings}
    rest = []
    for item in spec.additional_envs:
        name = item.get("name")
        if name in {GPUS, INDEX} and "value" not in item:
            raise ArcadiaConfigError(
                f"{name} in spec.additionalEnvs has no value.", what_to_do="Write it as text: a number."
            )
        if name == GPUS:
            found["num_gpus"] = parse_num_gpus(item["value"])
        elif name == INDEX:
            settings["ray_cluster_index"] = parse_index(item["value"])
        else:
            rest.append(item)
    if rest:
        settings["additional_envs"] = rest
    settings.update(overrides or {})
    WorkerResourceSettings.check_literals(settings)
    if spec.model:
        model = mapping(spec.model, "spec.model", ("apiGroup", "kind", "name", "namespace"))
        if not model.get("name"):
            raise ArcadiaConfigError("spec.model has no name.", what_to_do="Name Arcadia's Model.")
        found["model"] = model
    return found
