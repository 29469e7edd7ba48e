"""Leases as files of one machine: what a run owns survives the process that wrote it.

``<root>/<lease name>/lease.json`` is the lease; logs and secret files of what it owns lie beside it. Only
their owner can read them, and a symbolic link in their place is never followed.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from airflow_arcadia.exceptions import ArcadiaConfigError, LeaseError, UnreadableLeaseError
from airflow_arcadia.lease import DEFAULT_DURATION_S, WARM, Identity, Lease, unreadable
from airflow_arcadia.warm import renew_use

_FILE = "lease.json"
_LOCK = ".lock"
_USERS = "users"
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")
_GENERATED_NAME = re.compile(r"[a-z][a-z0-9-]*-[0-9a-f]{10}")
"""What :attr:`Identity.lease_name` makes; other directories beside the leases are not ours to list."""

log = logging.getLogger(__name__)


def default_root() -> Path:
    """``$ARCADIA_STATE_DIR``, else ``$AIRFLOW_HOME/arcadia``, else ``~/.arcadia``."""
    if chosen := os.environ.get("ARCADIA_STATE_DIR"):
        return Path(chosen)
    if home := os.environ.get("AIRFLOW_HOME"):
        return Path(home) / "arcadia"
    return Path.home() / ".arcadia"


def no_such_lease(name: str) -> LeaseError:
    """The error for a lease that was never reserved, or was torn down."""
    return LeaseError(
        f"Lease {name} does not exist.",
        still_running="What it owned was ended with it.",
        what_to_do="Clear the run from its reserve task, so that it reserves a new one.",
    )


class Leases(Protocol):
    """Where leases are kept: files of one machine, or Lease objects of a cluster."""

    def reserve(self, identity: Identity, now: float, duration_s: float = DEFAULT_DURATION_S) -> Lease:
        """The lease of ``identity``: a new one, or the one reserved before, renewed."""

    def read(self, name: str) -> Lease | None:
        """The lease, or None when there is none. Raises when it cannot be read."""

    def update(self, name: str, change: Callable[[Lease], Lease]) -> Lease:
        """Change it atomically. Raises :class:`LeaseError` when there is no such lease."""

    def create(self, lease: Lease) -> bool:
        """Make it; False when there is one of that name already."""

    def warm(self) -> list[Lease]:
        """All leases of warm workers that can be read."""

    async def renew(self, name: str, now: float) -> Lease:
        """Renew it, and its use of a warm worker, from asynchronous code.

        Raises :class:`LeaseError` when there is no such lease, or no such worker any more.
        """

    def names(self) -> list[str]:
        """Names of all leases, those that cannot be read included."""


class LeaseStore:
    """All leases under one directory.

    :param root: the directory; made on first use, readable by its owner alone.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def directory(self, name: str) -> Path:
        """The lease's own directory. Raises :class:`LeaseError` when there is no such lease."""
        path = self._path(name)
        if not path.is_dir():
            # Making it again would leave a directory behind that no lease names and no teardown removes.
            raise no_such_lease(name)
        return path

    def file(self, name: str) -> Path:
        """Path of the lease's file."""
        return self._path(name) / _FILE

    def write_secret(self, name: str, filename: str, secret: str) -> Path:
        """Write ``secret`` to a file beside the lease (mode 0600) and return its path."""
        path = self.directory(name) / filename
        _replace_file(path, secret)
        return path

    def read_secret(self, name: str, filename: str) -> str | None:
        """What was written by :meth:`write_secret`; None when nothing was.

        Raises :class:`LeaseError` when there is no such lease, or when the file cannot be read.
        """
        try:
            return (self.directory(name) / filename).read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise LeaseError(
                f"The file {filename} of lease {name} cannot be read: {error}.",
                what_to_do="Run the task as the user that launched the worker.",
            ) from error

    def reserve(self, identity: Identity, now: float, duration_s: float = DEFAULT_DURATION_S) -> Lease:
        """The lease of ``identity``: a new one, or the one reserved before, renewed.

        One that cannot be read is replaced: what it owned carries its name and is found without it.
        """
        name = identity.lease_name
        self._make_directory(name)
        with self._locked(name):
            try:
                found = self.read(name)
            except UnreadableLeaseError as error:
                log.warning("%s It is written anew.", error.what)
                found = None
            if found is None or found.released:
                found = Lease(name, identity, now, now, duration_s)
            return self._write(found.renew(now))

    def read(self, name: str) -> Lease | None:
        """The lease, or None when there is none.

        Raises OSError or :class:`~airflow_arcadia.exceptions.UnreadableLeaseError` when it cannot be read.
        """
        return read_lease_file(self.file(name))

    def update(self, name: str, change: Callable[[Lease], Lease]) -> Lease:
        """Read, change and write under a lock. Raises :class:`LeaseError` when there is no such lease."""
        if self.file(name).exists():
            with self._locked(name):
                found = self.read(name)
                if found is not None:
                    return self._write(change(found))
        raise no_such_lease(name)

    def create(self, lease: Lease) -> bool:
        """Make it; False when there is one of that name already."""
        self._make_directory(lease.name)
        with self._locked(lease.name):
            if os.path.lexists(self.file(lease.name)):
                return False
            self._write(lease)
            return True

    def warm(self) -> list[Lease]:
        """All leases of warm workers that can be read."""
        found = []
        for name in self.names():
            if name.startswith(f"{WARM}-"):
                with contextlib.suppress(UnreadableLeaseError, OSError):
                    found.append(self.read(name))
        return [lease for lease in found if lease is not None and lease.warm is not None]

    async def renew(self, name: str, now: float) -> Lease:
        """Renew it, and its use of a warm worker, from asynchronous code."""
        return await asyncio.to_thread(self._renew, name, now)

    def _renew(self, name: str, now: float) -> Lease:
        run = self.update(name, lambda held: held.renew(now))
        if run.warm_name is not None:
            self.update(run.warm_name, lambda held: renew_use(held, run, now))
        return run

    def remove(self, name: str) -> None:
        """Remove the lease and everything beside it; nothing happens when it is gone already."""
        # The lease first: whoever watches it must not see it without what lies beside it.
        path = self._path(name)
        if path.is_symlink():
            path.unlink(missing_ok=True)  # never ours: what it points to stays
            return
        self.file(name).unlink(missing_ok=True)
        shutil.rmtree(path, ignore_errors=True)

    def names(self) -> list[str]:
        """Names of all leases, and of directories that a lease has left behind."""
        if not self.root.is_dir():
            return []
        with os.scandir(self.root) as entries:
            named = [e for e in entries if _GENERATED_NAME.fullmatch(e.name)]
        ours = (e.name for e in named if e.is_dir(follow_symlinks=False) and _is_lease_directory(e.path))
        return sorted(ours)

    def changed_at(self, name: str) -> float:
        """When the lease or its directory last changed, seconds since the epoch; 0 when there is neither."""
        for path in (self.file(name), self._path(name)):
            with contextlib.suppress(FileNotFoundError):
                return path.lstat().st_mtime
        return 0.0

    def add_user(self, name: str, user: str) -> None:
        """Let what lease ``name`` owns stay for as long as lease ``user`` holds, too.

        Raises :class:`LeaseError` when there is no lease ``name``.
        """
        with self._locked(name):
            folder = self.directory(name) / _USERS
            folder.mkdir(mode=0o700, exist_ok=True)
            (folder / self._path(user).name).touch(mode=0o600)

    def remove_user(self, user: str) -> list[str]:
        """End that of ``user``; returns the names of the leases it was a user of."""
        found = [name for name in self.names() if (self._path(name) / _USERS / user).exists()]
        for name in found:
            (self._path(name) / _USERS / user).unlink(missing_ok=True)
        return found

    def users(self, name: str, now: float) -> list[str]:
        """Leases that still hold and use what lease ``name`` owns."""
        return users_holding(self._path(name), now)

    def locked(self, name: str) -> AbstractContextManager[None]:
        """Keep others from changing the lease or its users. Raises :class:`LeaseError` when there is none."""
        return self._locked(name)

    def _path(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise ArcadiaConfigError(
                f"{name!r} is not the name of a lease.",
                what_to_do="Pass what ArcadiaReserveWorkerOperator returned.",
            )
        return self.root / name

    def _make_directory(self, name: str) -> None:
        """Make the lease's directory, readable by its owner alone. Raises what stands in its place."""
        if not self.root.exists():
            self.root.parent.mkdir(parents=True, exist_ok=True)
            self.root.mkdir(mode=0o700, exist_ok=True)
        path = self._path(name)
        path.mkdir(mode=0o700, exist_ok=True)
        found = path.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid not in {os.geteuid(), 0}:
            raise ArcadiaConfigError(
                f"{path} is not a directory of this user's.",
                what_to_do="Set state_dir of the connection to a directory that only this user can write to.",
            )
        if found.st_uid == os.geteuid() and stat.S_IMODE(found.st_mode) != 0o700:
            path.chmod(0o700)

    @contextlib.contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            lock = os.open(self.directory(name) / _LOCK, flags, 0o600)
        except FileNotFoundError as error:
            raise no_such_lease(name) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _write(self, lease: Lease) -> Lease:
        try:
            _replace_file(self.file(lease.name), json.dumps(lease.to_dict()))
        except FileNotFoundError as error:
            raise no_such_lease(lease.name) from error
        return lease


def users_holding(directory: Path, now: float) -> list[str]:
    """Other leases that still hold and use what the lease in ``directory`` owns; sorted names."""
    try:
        names = sorted(os.listdir(directory / _USERS))
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [name for name in names if name != directory.name and _holds(directory.parent / name, now)]


def _holds(directory: Path, now: float) -> bool:
    file = directory / _FILE
    try:
        lease = read_lease_file(file)
    except (OSError, UnreadableLeaseError):
        # Could not read is never absent, nor for ever.
        with contextlib.suppress(OSError):
            return now < file.lstat().st_mtime + DEFAULT_DURATION_S
        return False
    return lease is not None and not lease.lapsed(now)


def _is_lease_directory(path: str) -> bool:
    return any(os.path.lexists(os.path.join(path, name)) for name in (_FILE, _LOCK))


def read_lease_file(path: str | os.PathLike[str]) -> Lease | None:
    """The lease in that file; None when there is none.

    Raises OSError or :class:`~airflow_arcadia.exceptions.UnreadableLeaseError` when it is there but cannot be
    read: that is not "absent".
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        content = file.read()
    try:
        raw = json.loads(content)
    except ValueError as error:
        raise unreadable(Path(path).parent.name, error) from error
    return Lease.from_dict(raw)


def _replace_file(path: Path, text: str) -> None:
    """Write the whole file (mode 0600) or nothing of it."""
    draft = path.with_name(f"{path.name}.tmp")
    # Made anew: a file that was there before may have another mode, or be a link to somewhere else.
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
