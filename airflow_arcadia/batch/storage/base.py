"""What a folder of whole files can do, and what both kinds of folders need."""

from __future__ import annotations

import contextlib
import os
import re
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import fsspec
from fsspec.implementations.local import LocalFileSystem

from airflow_arcadia.batch.spec import NO_ROW_SENT
from airflow_arcadia.batch.storage.errors import explained
from airflow_arcadia.exceptions import BatchInputError

TEMPORARY = ".tmp-"
"""Names of files in the making begin with this."""
_LEFTOVER_S = 3600.0
"""A temporary file that was not written for so long belongs to no attempt that lives."""


class Folder(Protocol):
    """A place for whole files. Names have no slash."""

    uri: str

    @property
    def work(self) -> Path:
        """A local directory to build files in before they are published here."""

    def create(self) -> None:
        """Make the folder where it is missing."""

    def check_usable(self) -> None:
        """Raise :class:`BatchInputError` unless files can be written here; leave nothing behind."""

    def is_exclusive(self) -> bool:
        """Whether :meth:`create_only` never replaces a file, however close two calls are."""

    def sizes(self) -> dict[str, int]:
        """Name and bytes of each file in it, sorted; none when it does not exist."""

    def exists(self, name: str) -> bool:
        """Whether the file is there."""

    def read(self, name: str) -> bytes:
        """A file's content. Raises FileNotFoundError."""

    def read_range(self, name: str, start: int, end: int) -> bytes:
        """The bytes of a file from ``start`` up to ``end``."""

    def create_only(self, name: str, data: bytes) -> None:
        """Write a small file unless it is there: FileExistsError then, however close the race was."""

    def publish(self, local: Path, name: str) -> None:
        """Make a finished file of :attr:`work` appear under ``name``, whole, replacing what was there."""

    def fetch(self, name: str) -> Path:
        """A local path with the file's content."""

    def remove(self, name: str) -> None:
        """Remove a file if it is there."""

    def remove_all(self) -> None:
        """Remove the folder and what is in it."""

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """Keep other attempts from committing meanwhile, where the file system can."""

    def each(self, work: Callable[[str], Any], names: Iterable[str]) -> list[Any]:
        """What ``work`` returns for each name, in order; at the same time where the storage takes that."""


def resolve(uri: str, storage: Mapping[str, Mapping[str, Any]] | None = None) -> tuple[Any, str]:
    """fsspec's file system and the path in it. Raises :class:`BatchInputError` for one that is not there.

    :param storage: options by protocol; a URI of another protocol, or of several, takes the environment's.
    """
    options = (storage or {}).get(protocol_of(uri) or "", {})
    try:
        with explained(shown(uri), NO_ROW_SENT):
            fs, path = fsspec.core.url_to_fs(uri, **options)
    except (ValueError, ImportError, TypeError) as error:
        if isinstance(error, BatchInputError):
            raise
        raise BatchInputError(
            f"{shown(uri)!r} cannot be opened: {error}.",
            what_to_do="Use a path or a URI whose file system is installed.",
            still_running=NO_ROW_SENT,
        ) from error
    return fs, path


def protocol_of(uri: str) -> str | None:
    """The one protocol of a URI; None for a path, and for several that are chained."""
    protocol, found, _ = uri.partition("://")
    return protocol if found and "::" not in uri else None


def shown(uri: str) -> str:
    """The URI for messages and results: without a password."""
    return re.sub(r"(://[^/@:]*):[^/@]*@", r"\1:***@", uri)


def is_local(fs: Any) -> bool:
    """Whether paths of the file system are paths of this machine."""
    return isinstance(fs, LocalFileSystem)


def temporary_path(folder: Folder, name: str) -> Path:
    """A path in the folder's :attr:`~Folder.work` that no other attempt on any machine uses."""
    return folder.work / f"{TEMPORARY}{uuid.uuid4().hex[:12]}-{name}"


def write(folder: Folder, name: str, data: bytes, *, work: Folder | None = None) -> None:
    """Write a small file whole.

    :param work: the folder to build it in; the same unless given.
    """
    local = temporary_path(work or folder, name)
    try:
        with local.open("wb") as file:
            file.write(data)
            sync(file)
        folder.publish(local, name)
    finally:
        local.unlink(missing_ok=True)


def sync(file: Any) -> None:
    """Make what was written survive a crash of the machine."""
    file.flush()
    os.fsync(file.fileno())


def remove_leftovers(folder: Folder) -> None:
    """Remove temporary files of attempts that were killed."""
    for path in folder.work.glob(f"{TEMPORARY}*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > _LEFTOVER_S:
                path.unlink()
