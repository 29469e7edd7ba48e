"""Files that are either whole or absent, on a local disk and on any fsspec file system.

Locally a file is written beside its place, fsynced and renamed. Elsewhere it is uploaded in one call, which
object stores make complete-or-absent; fsspec's own ``open(…, "wb")`` is not used, for it commits what was
written when an error ends it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import fsspec
from fsspec.implementations.local import LocalFileSystem

from airflow_arcadia.exceptions import BatchInputError

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_TEMPORARY = ".tmp-"
_OBJECT_STORES = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oss", "oci"})


def is_full(error: OSError) -> bool:
    """Whether the error says that the storage takes no more bytes."""
    return error.errno in _FULL


def resolve(uri: str) -> tuple[Any, str]:
    """fsspec's file system and the path in it. Raises :class:`BatchInputError` for an unknown protocol."""
    try:
        fs, path = fsspec.core.url_to_fs(uri)
    except (ValueError, ImportError) as error:
        raise BatchInputError(
            f"{uri!r} cannot be opened: {error}.",
            what_to_do="Use a path or a URI whose file system is installed.",
        ) from error
    return fs, path


def is_local(fs: Any) -> bool:
    """Whether paths of the file system are paths of this machine."""
    return isinstance(fs, LocalFileSystem)


class Folder(Protocol):
    """A place for whole files. Names have no slash."""

    uri: str

    @property
    def work(self) -> Path:
        """A local directory to build files in before they are published here."""

    def create(self) -> None:
        """Make the folder where it is missing."""

    def names(self) -> list[str]:
        """Files in it, sorted; none when it does not exist."""

    def exists(self, name: str) -> bool:
        """Whether the file is there."""

    def read(self, name: str) -> bytes:
        """A file's content. Raises FileNotFoundError."""

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


def open_folder(uri: str) -> Folder:
    """The folder at ``uri``, which need not exist."""
    fs, path = resolve(uri)
    return LocalFolder(Path(path)) if is_local(fs) else RemoteFolder(fs, path.rstrip("/"), uri.rstrip("/"))


def write(folder: Folder, name: str, data: bytes) -> None:
    """Write a small file whole."""
    local = folder.work / f"{_TEMPORARY}{os.getpid()}-{name}"
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


class LocalFolder:
    """A directory of this machine."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.uri = str(path)

    @property
    def work(self) -> Path:
        return self.path

    def create(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)

    def names(self) -> list[str]:
        with contextlib.suppress(FileNotFoundError):
            return sorted(name for name in os.listdir(self.path) if not name.startswith("."))
        return []

    def exists(self, name: str) -> bool:
        return (self.path / name).exists()

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    def create_only(self, name: str, data: bytes) -> None:
        local = self.path / f"{_TEMPORARY}{os.getpid()}-{name}"
        try:
            with local.open("wb") as file:
                file.write(data)
                sync(file)
            # A link, not a rename: it never replaces.
            os.link(local, self.path / name)
        finally:
            local.unlink(missing_ok=True)

    def publish(self, local: Path, name: str) -> None:
        os.replace(local, self.path / name)
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def fetch(self, name: str) -> Path:
        return self.path / name

    def remove(self, name: str) -> None:
        (self.path / name).unlink(missing_ok=True)

    def remove_all(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        with (self.path / ".lock").open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


class RemoteFolder:
    """A prefix of an object store, or a directory of any other fsspec file system."""

    def __init__(self, fs: Any, path: str, uri: str) -> None:
        self._fs, self._path, self.uri = fs, path, uri
        self._work: tempfile.TemporaryDirectory[str] | None = None

    @property
    def work(self) -> Path:
        if self._work is None:
            self._work = tempfile.TemporaryDirectory(prefix="arcadia-batch-")
        return Path(self._work.name)

    def create(self) -> None:
        # Object stores have no folders, and would make a bucket out of a misspelt name.
        if not self._is_object_store:
            self._fs.makedirs(self._path, exist_ok=True)

    def missing_bucket(self) -> str | None:
        """The name of the bucket, if it does not exist."""
        bucket = self._path.partition("/")[0]
        return bucket if self._is_object_store and not self._fs.exists(bucket) else None

    @property
    def _is_object_store(self) -> bool:
        protocols = self._fs.protocol
        return bool(_OBJECT_STORES & {*((protocols,) if isinstance(protocols, str) else protocols)})

    def names(self) -> list[str]:
        self._fs.invalidate_cache()
        with contextlib.suppress(FileNotFoundError):
            found = self._fs.find(self._path, maxdepth=1)
            return sorted(name for name in (path.rsplit("/", 1)[-1] for path in found) if name)
        return []

    def exists(self, name: str) -> bool:
        self._fs.invalidate_cache()
        return bool(self._fs.exists(f"{self._path}/{name}"))

    def read(self, name: str) -> bytes:
        return bytes(self._fs.cat_file(f"{self._path}/{name}"))

    def create_only(self, name: str, data: bytes) -> None:
        self._fs.pipe_file(f"{self._path}/{name}", data, mode="create")

    def publish(self, local: Path, name: str) -> None:
        self._fs.put_file(str(local), f"{self._path}/{name}")
        if not name.startswith("."):
            # Kept for the end of the batch, which reads it again.
            os.replace(local, self.work / name)

    def fetch(self, name: str) -> Path:
        local = self.work / name
        if not local.exists():
            partial = self.work / f"{_TEMPORARY}{name}"
            self._fs.get_file(f"{self._path}/{name}", str(partial))
            os.replace(partial, local)
        return local

    def remove(self, name: str) -> None:
        (self.work / name).unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(f"{self._path}/{name}")

    def remove_all(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm(self._path, recursive=True)
        if self._work is not None:
            self._work.cleanup()
            self._work = None

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        yield
