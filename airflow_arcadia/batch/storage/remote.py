"""A folder on any fsspec file system.

On an object store a file is uploaded in one call, which makes it complete or absent. Elsewhere (ftp, sftp,
smb, webdav) it is uploaded under a temporary name and renamed. fsspec's own ``open(…, "wb")`` is not used,
for it commits what was written when an error ends it; neither are its calls that
take ``[``, ``*`` and ``?`` in a name as a pattern.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from fsspec.core import has_magic
from fsspec.spec import AbstractFileSystem

from airflow_arcadia.batch.spec import NO_ROW_SENT
from airflow_arcadia.batch.storage.base import TEMPORARY, temporary_path
from airflow_arcadia.batch.storage.errors import StorageFullError, explained, is_full
from airflow_arcadia.batch.storage.temporary import TemporaryDirectory
from airflow_arcadia.exceptions import BatchInputError

_OBJECT_STORES = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oss", "oci", "memory"})
_PARALLEL = 16
"""Requests at a time to a store that takes several."""


class RemoteFolder:
    """A prefix of an object store, or a directory of any other fsspec file system.

    :param path: its path as ``fs`` takes it.
    :param uri: its name in messages.
    """

    def __init__(self, fs: Any, path: str, uri: str) -> None:
        self._fs, self._path, self.uri = fs, path, uri
        self._work: TemporaryDirectory | None = None

    @property
    def work(self) -> Path:
        if self._work is None:
            self._work = TemporaryDirectory()
        return self._work.path

    def create(self) -> None:
        # Object stores have no folders, and would make a bucket out of a misspelt name.
        if not self._is_object_store:
            self._fs.makedirs(self._path, exist_ok=True)

    def check_usable(self) -> None:
        what = f"The output's folder {self.uri}"
        with explained(what, NO_ROW_SENT):
            try:
                self.create()
                name = f"probe-{uuid.uuid4().hex[:12]}"
                self._fs.pipe_file(self._file(name), b"probe")
                self._fs.rm_file(self._file(name))
            except Exception:
                bucket = self._path.partition("/")[0]
                if self._is_object_store and not self._fs.exists(bucket):
                    raise BatchInputError(
                        f"The output's bucket {bucket} does not exist.",
                        what_to_do="Correct the output, or create the bucket.",
                        still_running=NO_ROW_SENT,
                    ) from None
                raise

    def is_exclusive(self) -> bool:
        """Whether :meth:`create_only` never replaces a file. Writes and removes a small file."""
        name = f"probe-{uuid.uuid4().hex[:12]}"
        try:
            self.create_only(name, b"1")
            self.create_only(name, b"2")
        except FileExistsError:
            return self._is_object_store
        finally:
            self.remove(name)
        return False

    def sizes(self) -> dict[str, int]:
        self._fs.invalidate_cache()
        with contextlib.suppress(FileNotFoundError):
            found = self._fs.find(self._path, maxdepth=1, detail=True)
            named = ((path.rsplit("/", 1)[-1], info.get("size") or 0) for path, info in found.items())
            return {name: size for name, size in sorted(named) if name and not name.startswith(".")}
        return {}

    def exists(self, name: str) -> bool:
        self._fs.invalidate_cache()
        return bool(self._fs.exists(self._file(name)))

    def read(self, name: str) -> bytes:
        with self._absence_told(name):
            return bytes(self._fs.cat_file(self._file(name)))

    def read_range(self, name: str, start: int, end: int) -> bytes:
        return bytes(self._fs.cat_file(self._file(name), start=start, end=end))

    def create_only(self, name: str, data: bytes) -> None:
        self._fs.invalidate_cache()
        path = self._file(name)
        if _takes_mode(self._fs):
            self._fs.pipe_file(path, data, mode="create")
            return
        if self._fs.exists(path):
            raise FileExistsError(path)
        self._fs.pipe_file(path, data)

    def publish(self, local: Path, name: str) -> None:
        try:
            self._put(local, name)
        except OSError as error:
            if is_full(error):
                raise StorageFullError(error.errno, f"{error}") from error
            raise
        if not name.startswith("."):
            # Kept for the end of the batch, which reads it again.
            os.replace(local, self.work / name)

    def fetch(self, name: str) -> Path:
        local = self.work / name
        if not local.exists():
            partial = temporary_path(self, name)
            try:
                with self._absence_told(name):
                    self._fs.get_file(self._file(name), str(partial))
                os.replace(partial, local)
            finally:
                partial.unlink(missing_ok=True)
        return local

    def remove(self, name: str) -> None:
        (self.work / name).unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError), self._absence_told(name):
            self._fs.rm_file(self._file(name))

    def remove_all(self) -> None:
        # By name: fsspec's recursive removal takes "[1]" in the folder's name as a pattern.
        self.each(self.remove, [*self.sizes(), *self._hidden()])
        if not self._is_object_store or self._is_memory:
            with contextlib.suppress(Exception):
                self._fs.rmdir(self._path)
        if self._work is not None:
            self._work.cleanup()
            self._work = None

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        yield

    def each(self, work: Callable[[str], Any], names: Iterable[str]) -> list[Any]:
        if not self._fs.async_impl:
            return [work(name) for name in names]
        with ThreadPoolExecutor(_PARALLEL, thread_name_prefix="arcadia-storage") as pool:
            return list(pool.map(work, names))

    @property
    def _is_object_store(self) -> bool:
        return bool(_OBJECT_STORES & self._protocols)

    @property
    def _is_memory(self) -> bool:
        return "memory" in self._protocols

    @property
    def _protocols(self) -> set[str]:
        protocols = self._fs.protocol
        return {protocols} if isinstance(protocols, str) else set(protocols)

    def _file(self, name: str) -> str:
        return f"{self._path.rstrip('/')}/{name}"

    @contextlib.contextmanager
    def _absence_told(self, name: str) -> Iterator[None]:
        """Raise FileNotFoundError for a file that is not there: not every file system does."""
        try:
            yield
        except Exception as error:
            if isinstance(error, FileNotFoundError) or self.exists(name):
                raise
            raise FileNotFoundError(self._file(name)) from error

    def _hidden(self) -> list[str]:
        """Uploads that were cut off before they had their name."""
        with contextlib.suppress(FileNotFoundError):
            found = (path.rsplit("/", 1)[-1] for path in self._fs.find(self._path, maxdepth=1))
            return [name for name in found if name.startswith(TEMPORARY)]
        return []

    def _put(self, local: Path, name: str) -> None:
        path = self._file(name)
        if self._is_object_store or type(self._fs).mv is AbstractFileSystem.mv:
            self._fs.put_file(str(local), path)
            return
        partial = self._file(f"{TEMPORARY}{uuid.uuid4().hex[:12]}-{name}")
        try:
            self._fs.put_file(str(local), partial)
            self._rename(partial, path)
        except BaseException:
            with contextlib.suppress(Exception):
                self._fs.rm_file(partial)
            raise

    def _rename(self, source: str, target: str) -> None:
        try:
            self._fs.mv(source, target)
        except Exception:
            # Some servers do not replace a file: remove the old one, and try once more.
            self._fs.invalidate_cache()
            if self._fs.exists(target):
                self._fs.rm_file(target)
                self._fs.mv(source, target)
            elif has_magic(source) and self._fs.exists(source):
                # This file system takes the name as a pattern, which matches nothing.
                self._fs.cp_file(source, target)
                self._fs.rm_file(source)
            else:
                raise


def _takes_mode(fs: Any) -> bool:
    """Whether ``pipe_file`` may be asked not to replace a file: webdav4's, for one, knows no mode."""
    parameters = inspect.signature(fs.pipe_file).parameters
    return "mode" in parameters or fs.async_impl
