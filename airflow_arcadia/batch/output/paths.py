"""Where a batch's files are: the output, what lies beside it, and the folder of an unfinished batch."""

from __future__ import annotations

import os
from dataclasses import dataclass

from airflow_arcadia.batch.spec import NO_ROW_SENT, BatchSpec
from airflow_arcadia.batch.storage import Folder, is_local, open_folder, resolve
from airflow_arcadia.exceptions import BatchInputError


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


def place_of(spec: BatchSpec) -> Place:
    """Where the batch's files go. Raises :class:`BatchInputError` when the output names no file."""
    fs, path = resolve(spec.output)
    parent, _, name = path.rpartition("/")
    if not name or path.endswith("/") or (is_local(fs) and os.path.isdir(path)):
        raise BatchInputError(
            f"The output {spec.output} is a folder.", what_to_do="Name a file.", still_running=NO_ROW_SENT
        )
    base = parent or "/" if is_local(fs) else fs.unstrip_protocol(parent)
    return Place(open_folder(base), open_folder(f"{base}/.{name}.parts"), name, spec.output)
