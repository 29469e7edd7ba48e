"""Read a Worker manifest as Arcadia's documentation has it."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from airflow_arcadia.exceptions import ArcadiaConfigError
from airflow_arcadia.kubernetes.kinds import WORKER
from airflow_arcadia.launchers.arcadia_worker.settings import GPUS, INDEX, WorkerResourceSettings
from airflow_arcadia.worker import parse_num_gpus

_TOP = ("apiVersion", "kind", "metadata", "spec", "status")
_SPEC = {
    "type": "type",
    "resources": "resources",
    "matchExpressions": "match_expressions",
    "storage": "storage",
    "loader": "loader",
    "runner": "runner",
    "creator": "creator",
    "displayName": "display_name",
    "description": "description",
}
"""Fields that are passed on as they stand, by the name of the setting."""
_READ = ("model", "replicas", "additionalEnvs")
_METADATA = ("name", "namespace", "labels", "annotations")
"""What a manifest says; the rest, as ``kubectl get -o yaml`` shows it, is the API server's."""
_LISTS, _TEXTS = ("matchExpressions", "additionalEnvs"), ("type", "creator", "displayName", "description")


def read_worker_manifest(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Parameters of ``ArcadiaLaunchWorkerOperator`` that make this Worker.

    Raises :class:`ArcadiaConfigError` naming the key at fault.
    """
    where = os.fspath(path)
    try:
        documents = list(yaml.safe_load_all(Path(path).read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError) as error:
        raise ArcadiaConfigError(
            f"Worker manifest {where!r} cannot be read: {error}.", what_to_do="Correct the path."
        ) from error
    except yaml.YAMLError as error:
        raise ArcadiaConfigError(
            f"Worker manifest {where!r} is not valid YAML: {error}.", what_to_do="Correct the file."
        ) from error
    documents = [document for document in documents if document is not None]
    if len(documents) != 1:
        raise ArcadiaConfigError(
            f"Worker manifest {where!r} has {len(documents)} documents.",
            what_to_do="Give a file with one Worker.",
        )
    return parse_worker_manifest(documents[0])


def parse_worker_manifest(raw: object) -> dict[str, Any]:
    """As :func:`read_worker_manifest`, from the decoded document."""
    document = _mapping(raw, "The manifest", _TOP)
    for key, wanted in (("apiVersion", WORKER.api_version), ("kind", WORKER.kind)):
        if document.get(key) != wanted:
            raise ArcadiaConfigError(
                f"{key} of the manifest is {document.get(key)!r}.", what_to_do=f"Set {key} to {wanted}."
            )
    metadata = _mapping(document.get("metadata") or {}, "metadata")
    spec = _mapping(document.get("spec") or {}, "spec", (*_SPEC, *_READ))
    if spec.get("replicas", 1) not in {0, 1} or isinstance(spec.get("replicas"), bool):
        raise ArcadiaConfigError(
            f"spec.replicas is {spec['replicas']!r}.", what_to_do="Arcadia knows 0 and 1; a launch sets 1."
        )
    settings = {key: metadata[key] for key in _METADATA if metadata.get(key)}
    settings |= {_SPEC[key]: _checked(key, value) for key, value in spec.items() if key in _SPEC and value}
    found: dict[str, Any] = {"launcher": "custom_resource", "num_gpus": 1, "custom_resource": settings}
    rest = []
    for item in _checked("additionalEnvs", spec.get("additionalEnvs") or []):
        name = item.get("name") if isinstance(item, Mapping) else None
        if name in {GPUS, INDEX} and "value" not in item:
            raise ArcadiaConfigError(
                f"{name} in spec.additionalEnvs has no value.", what_to_do="Write it as text: a number."
            )
        if name == GPUS:
            found["num_gpus"] = parse_num_gpus(item["value"])
        elif name == INDEX:
            settings["ray_cluster_index"] = _index(item["value"])
        else:
            rest.append(item)
    if rest:
        settings["additional_envs"] = rest
    WorkerResourceSettings.parse(settings)
    if spec.get("model"):
        model = _mapping(spec["model"], "spec.model", ("apiGroup", "kind", "name", "namespace"))
        if not model.get("name"):
            raise ArcadiaConfigError("spec.model has no name.", what_to_do="Name Arcadia's Model.")
        found["model"] = dict(model)
    return found


def _index(value: object) -> int:
    text = str(value).strip()
    if isinstance(value, bool) or not text.isdecimal():
        raise ArcadiaConfigError(
            f"{INDEX} is {value!r}.", what_to_do="Set it to a whole number, 0 or more: Arcadia would take 0."
        )
    return int(text)


def _checked(key: str, value: Any) -> Any:
    wanted, kind = (
        ("a list", list) if key in _LISTS else ("text", str) if key in _TEXTS else ("a mapping", Mapping)
    )
    if not isinstance(value, kind):
        raise ArcadiaConfigError(
            f"spec.{key} is a {type(value).__name__}, not {wanted}.", what_to_do=f"Write it as {wanted}."
        )
    return value


def _mapping(raw: object, where: str, known: tuple[str, ...] | None = None) -> Mapping[str, Any]:
    if not isinstance(raw, Mapping):
        raise ArcadiaConfigError(
            f"{where} is a {type(raw).__name__}, not a mapping.",
            what_to_do="Write it as Arcadia's Worker has it.",
        )
    for key in raw:
        if known is not None and key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(known)}."
            raise ArcadiaConfigError(f"{where} has the unknown key {key!r}.", what_to_do=hint)
    return raw
