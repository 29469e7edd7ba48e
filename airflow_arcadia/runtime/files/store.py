"""The files of a worker's clients, in a directory beside its lease that goes away with it.

Each file has a random id, which is its name on disk; a client's own name for it is only text in its record.
A file that is being written has a hidden name until it is whole. Sizes are limited: of one file, and of all
files together with what running batches have written.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airflow_arcadia.batch.storage.temporary import TemporaryDirectory
from airflow_arcadia.runtime.log import say

BATCH, BATCH_OUTPUT = "batch", "batch_output"
"""OpenAI's purposes of a file: rows of a batch, and what a batch wrote."""
SHORTEST_LIFE_S, LONGEST_LIFE_S = 3600, 30 * 24 * 3600
"""OpenAI's limits on ``expires_after``."""
MAX_FILES = 10_000
_ID = re.compile(r"file-[0-9a-f]{32}")
_DRAFT, _WORK = ".draft-", "batch_"
_LONGEST_NAME = 255
_MEASURE_S = 5.0


class FileRefused(Exception):
    """The file cannot be stored.

    :param status: the HTTP status that says so.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Limits:
    """What files may take.

    :param file_bytes: size of one upload.
    :param total_bytes: size of all files, and of what running batches have written.
    :param lifetime_s: seconds after which a file is removed, unless it was to be removed sooner.
    """

    file_bytes: int
    total_bytes: int
    lifetime_s: float


@dataclass(frozen=True)
class StoredFile:
    """One file. Times are seconds since the epoch.

    :param filename: the client's name for it.
    :param purpose: :data:`BATCH` or :data:`BATCH_OUTPUT`.
    """

    id: str
    filename: str
    bytes: int
    created_at: int
    expires_at: int
    purpose: str

    def to_openai(self) -> dict[str, Any]:
        """OpenAI's File object."""
        fields = dataclasses.asdict(self)
        return {"object": "file", **fields, "status": "processed", "status_details": None}


def new_id() -> str:
    """An id that nobody can guess."""
    return f"file-{secrets.token_hex(16)}"


class FileStore:
    """See the module. Its methods block for as long as the disk takes; threads may share it.

    :param folder: the directory, made on first use; None takes a temporary one of this process.
    :param in_use: whether a batch that runs reads the file of that id.
    """

    def __init__(
        self, folder: Path | None, limits: Limits, *, clock: Callable[[], float] = time.time
    ) -> None:
        self.limits = limits
        self.in_use: Callable[[str], bool] = lambda _: False
        self._folder = folder
        self._temporary: TemporaryDirectory | None = None
        self._clock = clock
        self._files: dict[str, StoredFile] = {}
        self._drafts: dict[Path, int] = {}
        """Files that are being written, and their bytes so far."""
        self._lock = threading.RLock()
        self._work: tuple[float, int] | None = None
        """When it was last measured what running batches have written, and how many bytes that were."""
        if folder is not None and folder.is_dir():
            self._load(folder)

    # -- what is there ---------------------------------------------------------------------------------

    def find(self, file_id: str) -> StoredFile | None:
        """The file of that id, unless it has expired."""
        found = self._files.get(file_id)
        return None if found is None or self._has_expired(found) else found

    def list(self) -> list[StoredFile]:
        """All files, oldest first."""
        with self._lock:
            return [file for file in self._files.values() if not self._has_expired(file)]

    def path(self, file_id: str) -> Path:
        """Where the content of a file of this store is."""
        return self._directory() / file_id

    def work_folder(self, batch_id: str) -> Path:
        """The directory in which a batch writes while it runs."""
        return self._directory() / batch_id

    def has_space(self, more: int = 0) -> bool:
        """Whether so many bytes more, and one file more, may be stored."""
        with self._lock:
            few = len(self._files) + len(self._drafts) < MAX_FILES
            return few and self._used() + more <= self.limits.total_bytes

    # -- what changes ----------------------------------------------------------------------------------

    def begin(self) -> Draft:
        """A new file, to be written piece by piece. Raises :class:`FileRefused` where there is no space."""
        self.remove_expired()
        if not self.has_space():
            raise self._full()
        return Draft(self, self._directory() / f"{_DRAFT}{secrets.token_hex(8)}")

    def adopt(
        self,
        path: Path,
        filename: str,
        purpose: str,
        *,
        file_id: str | None = None,
        life_s: float | None = None,
    ) -> StoredFile:
        """Take a finished file of the same file system into the store.

        :param life_s: seconds after which it is to be removed, if sooner than by the limits.
        """
        now = self._clock()
        life = min(self.limits.lifetime_s, life_s if life_s is not None else self.limits.lifetime_s)
        file = StoredFile(
            file_id or new_id(), plain_name(filename), path.stat().st_size, int(now), int(now + life), purpose
        )
        with self._lock:
            path.replace(self.path(file.id))
            record = self._record(file.id)
            draft = record.with_name(f"{_DRAFT}{record.name}")
            draft.write_text(json.dumps(dataclasses.asdict(file)), encoding="utf-8")
            draft.replace(record)
            self._files[file.id] = file
        return file

    def remove(self, file_id: str) -> None:
        """Remove a file; nothing happens when it is gone already."""
        with self._lock:
            self.path(file_id).unlink(missing_ok=True)
            self._record(file_id).unlink(missing_ok=True)
            self._files.pop(file_id, None)

    def remove_expired(self) -> None:
        """Remove files whose time is over, but for those that a batch reads.

        One that the disk does not let go is said and tried again: it must not end the worker, nor an upload.
        """
        with self._lock:
            expired = [file.id for file in self._files.values() if self._has_expired(file)]
        for file_id in expired:
            if self.in_use(file_id):
                continue
            try:
                self.remove(file_id)
            except OSError as error:
                say(f"{file_id} has expired and cannot be removed yet: {error}")

    def remove_work_folders(self, running: Callable[[str], bool]) -> None:
        """Remove what batches wrote that do not run any more.

        :param running: whether the batch of that id does.
        """
        if self._folder is None or not self._folder.is_dir():
            return
        for path in self._folder.glob(f"{_WORK}*"):
            if not running(path.name):
                shutil.rmtree(path, ignore_errors=True)

    def close(self) -> None:
        """Remove the directory, if it is a temporary one."""
        if self._temporary is not None:
            self._temporary.cleanup()

    # -- inner workings --------------------------------------------------------------------------------

    def note_draft(self, path: Path, size: int | None) -> None:
        """A file that is being written has so many bytes; None: it is not any more."""
        with self._lock:
            if size is None:
                self._drafts.pop(path, None)
                return
            if size > self.limits.file_bytes:
                raise FileRefused(413, f"A file may have at most {self.limits.file_bytes} bytes.")
            if self._used() + size - self._drafts.get(path, 0) > self.limits.total_bytes:
                raise self._full()
            self._drafts[path] = size

    def _full(self) -> FileRefused:
        return FileRefused(
            413,
            f"The worker keeps at most {MAX_FILES} files of {self.limits.total_bytes} bytes for its clients. "
            "Delete files that are not needed any more.",
        )

    def _used(self) -> int:
        stored = sum(file.bytes for file in self._files.values())
        return stored + sum(self._drafts.values()) + self._work_bytes()

    def _work_bytes(self) -> int:
        """What batches that run have written, as of the last seconds."""
        now = time.monotonic()
        if self._work is None or now - self._work[0] > _MEASURE_S:
            self._work = now, self._measure_work()
        return self._work[1]

    def _measure_work(self) -> int:
        total = 0
        if self._folder is not None and self._folder.is_dir():
            for path in self._folder.glob(f"{_WORK}*/**/*"):
                with contextlib.suppress(OSError):
                    total += path.lstat().st_size
        return total

    def _directory(self) -> Path:
        if self._folder is None:
            self._temporary = TemporaryDirectory()
            self._folder = self._temporary.path
        # Not its parents: without the lease's directory the worker is being torn down.
        self._folder.mkdir(mode=0o700, exist_ok=True)
        return self._folder

    def _record(self, file_id: str) -> Path:
        return self._directory() / f"{file_id}.json"

    def _has_expired(self, file: StoredFile) -> bool:
        return self._clock() >= file.expires_at

    def _load(self, folder: Path) -> None:
        """Find what an earlier process of this worker stored, and remove what it left unfinished."""
        for path in folder.glob(f"{_DRAFT}*"):
            path.unlink(missing_ok=True)
        files = [file for file in map(_read_record, folder.glob("file-*.json")) if file is not None]
        for file in sorted(files, key=lambda one: one.created_at):
            if (folder / file.id).is_file():
                self._files[file.id] = file
        for path in folder.glob("file-*"):
            if path.name.removesuffix(".json") not in self._files:
                path.unlink(missing_ok=True)


class Draft:
    """A file that is being written, until :meth:`finish` or :meth:`close`.

    :param path: where its bytes go.
    """

    def __init__(self, store: FileStore, path: Path) -> None:
        self._store, self.path = store, path
        self.size = 0
        store.note_draft(path, 0)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            self._file = os.fdopen(os.open(path, flags, 0o600), "wb", buffering=0)
        except OSError:
            store.note_draft(path, None)
            raise

    def write(self, data: bytes) -> None:
        """Append bytes. Raises :class:`FileRefused` where they are too many."""
        self._store.note_draft(self.path, self.size + len(data))
        self.size += len(data)
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) or 0 :]

    def finish(self, filename: str, purpose: str, life_s: float | None) -> StoredFile:
        """Make it a file of the store."""
        os.fsync(self._file.fileno())
        self._file.close()
        self._store.note_draft(self.path, None)
        return self._store.adopt(self.path, filename, purpose, life_s=life_s)

    def close(self) -> None:
        """Drop it, unless it is finished."""
        self._file.close()
        self._store.note_draft(self.path, None)
        self.path.unlink(missing_ok=True)


def plain_name(given: str) -> str:
    """A client's name of a file, without folders and without characters that cannot be shown."""
    name = given.replace("\\", "/").rpartition("/")[2]
    name = "".join(character for character in name if character.isprintable())
    return name[:_LONGEST_NAME] or "upload"


def blocks(path: Path, size: int) -> Iterator[bytes]:
    """The file's content, in blocks of so many bytes."""
    with path.open("rb") as file:
        while block := file.read(size):
            yield block


def _read_record(path: Path) -> StoredFile | None:
    try:
        file = StoredFile(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        say(f"{path.name} is not the record of a file and is removed: {error}")
        return None
    return file if _ID.fullmatch(file.id) and path.name == f"{file.id}.json" else None
