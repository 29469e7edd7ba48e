"""A directory of this machine. A file is written beside its place, fsynced and renamed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from airflow_arcadia.batch.spec import NO_ROW_SENT
from airflow_arcadia.batch.storage.base import sync, temporary_path
from airflow_arcadia.exceptions import BatchInputError


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

    def check_usable(self) -> None:
        existing = self.path
        while not existing.exists() and existing != existing.parent:
            existing = existing.parent
        if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
            raise BatchInputError(
                f"The output's folder {self.path} cannot be written.",
                what_to_do="Choose another output, or correct the rights.",
                still_running=NO_ROW_SENT,
            )

    def is_exclusive(self) -> bool:
        return True

    def sizes(self) -> dict[str, int]:
        with contextlib.suppress(FileNotFoundError), os.scandir(self.path) as entries:
            found = [entry for entry in entries if not entry.name.startswith(".")]
            return {entry.name: entry.stat().st_size for entry in sorted(found, key=lambda one: one.name)}
        return {}

    def exists(self, name: str) -> bool:
        return (self.path / name).exists()

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    def read_range(self, name: str, start: int, end: int) -> bytes:
        with (self.path / name).open("rb") as file:
            file.seek(start)
            return file.read(end - start)

    def create_only(self, name: str, data: bytes) -> None:
        local = temporary_path(self, name)
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

    def each(self, work: Callable[[str], Any], names: Iterable[str]) -> list[Any]:
        return [work(name) for name in names]
