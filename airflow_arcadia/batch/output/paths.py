"""Paths of a batch's files: the output, the files beside it, and the folder of an unfinished batch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import orjson

from airflow_arcadia.batch.output.manifest import Identity, Manifest
from airflow_arcadia.batch.spec import NO_ROW_SENT, BatchSpec, BatchSummary
from airflow_arcadia.batch.storage import Folder, folder_at, is_local, resolve, shown
from airflow_arcadia.exceptions import BatchInputError

_LONGEST_NAME = 255 - len(".tmp-000000000000-.errors.jsonl")
"""Bytes that a name of the output may have, so that all names made of it fit in a file system's 255."""


@dataclass(frozen=True)
class Place:
    """Where a batch's files are. ``name`` is the output's in ``folder``."""

    folder: Folder
    parts: Folder
    name: str
    uri: str

    @property
    def errors(self) -> str:
        """Name of the file with the error rows alone."""
        return f"{self.name}.errors.jsonl"

    @property
    def summary(self) -> str:
        """Name of the summary; the batch is finished once it is there."""
        return f"{self.name}.summary.json"

    def finished(self) -> tuple[BatchSummary, Manifest] | None:
        """The summary and manifest of a finished batch; None without one, and for a foreign file."""
        try:
            raw: dict[str, Any] = orjson.loads(self.folder.read(self.summary))
            job = raw["job"]
            manifest = Manifest(**{**job, "identity": Identity(**job["identity"])})
            # A summary of an earlier version has no id of its own.
            return BatchSummary.from_dict({"completion_id": manifest.epoch} | raw), manifest
        except (FileNotFoundError, NotADirectoryError, KeyError, TypeError, ValueError):
            return None


def place_of(spec: BatchSpec) -> Place:
    """Where the batch's files go. Raises :class:`BatchInputError` when the output is not a file's name, or
    one of the files would replace the input."""
    fs, path = resolve(spec.output, spec.storage)
    if is_local(fs):
        # Write to the target of a symbolic link instead of replacing the link.
        path = os.path.realpath(path) if not path.endswith("/") else path
    parent, _, name = path.rpartition("/")
    if not name or path.endswith("/") or spec.output.endswith("/") or (is_local(fs) and os.path.isdir(path)):
        raise _refuse(f"The output {shown(spec.output)} is a folder.", "Name a file.")
    if len(name.encode()) > _LONGEST_NAME:
        raise _refuse(f"The output's name {name} has more than {_LONGEST_NAME} bytes.", "Use a shorter name.")
    # For messages only: a path within a file system does not name the host.
    where = path.rpartition("/")[0] if is_local(fs) else shown(spec.output).rpartition("/")[0]
    hidden = f".{name}.parts"
    place = Place(
        folder_at(fs, parent or "/", where or "/"),
        folder_at(fs, f"{parent}/{hidden}", f"{where}/{hidden}"),
        name,
        shown(spec.output),
    )
    _refuse_input_as_output(spec, place, fs, parent)
    return place


def _refuse_input_as_output(spec: BatchSpec, place: Place, fs: Any, parent: str) -> None:
    source_fs, source = resolve(spec.input, spec.storage)
    if is_local(fs) and is_local(source_fs):
        source = os.path.realpath(source)
    elif fs is not source_fs:
        # Instances are cached by protocol, host and options: another one is another place.
        return
    for name in (place.name, place.errors, place.summary):
        if source == f"{parent}/{name}":
            raise _refuse(
                f"The input {shown(spec.input)} would be replaced by the batch's own file {name}.",
                "Choose another output.",
            )


def _refuse(what: str, what_to_do: str) -> BatchInputError:
    return BatchInputError(what, what_to_do=what_to_do, still_running=NO_ROW_SENT)
