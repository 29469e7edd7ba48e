"""Leases as files of one machine: what a run owns survives whoever wrote it.

``<root>/<lease name>/lease.json`` is the lease; logs and secret files of what it owns lie beside it.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from airflow_arcadia.exceptions import ArcadiaError
from airflow_arcadia.lease import DEFAULT_DURATION_S, Identity, Lease

_FILE = "lease.json"


def default_root() -> Path:
    """``$ARCADIA_STATE_DIR``, else ``$AIRFLOW_HOME/arcadia``, else ``~/.arcadia``."""
    if chosen := os.environ.get("ARCADIA_STATE_DIR"):
        return Path(chosen)
    if home := os.environ.get("AIRFLOW_HOME"):
        return Path(home) / "arcadia"
    return Path.home() / ".arcadia"


class LeaseError(ArcadiaError):
    """A lease that is needed is not there."""


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
        """Change it, alone. Raises :class:`LeaseError` when there is no such lease."""

    async def renew(self, name: str, now: float) -> None:
        """Renew it, from asynchronous code. Raises :class:`LeaseError` when there is no such lease."""


class LeaseStore:
    """All leases under one directory.

    :param root: the directory; made on first use, readable by its owner alone.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def directory(self, name: str) -> Path:
        """The lease's own directory (mode 0700), made if it is not there."""
        path = self.root / name
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return path

    def file(self, name: str) -> Path:
        """Path of the lease's file."""
        return self.root / name / _FILE

    def reserve(self, identity: Identity, now: float, duration_s: float = DEFAULT_DURATION_S) -> Lease:
        """The lease of ``identity``: a new one, or the one reserved before, renewed."""
        name = identity.lease_name
        with self._locked(name):
            found = self.read(name)
            if found is None or found.released:
                found = Lease(name, identity, now, now, duration_s)
            return self._write(found.renew(now))

    def read(self, name: str) -> Lease | None:
        """The lease, or None when there is none. Raises OSError or ValueError when it cannot be read."""
        return read_lease_file(self.file(name))

    def update(self, name: str, change: Callable[[Lease], Lease]) -> Lease:
        """Read, change and write under a lock. Raises :class:`LeaseError` when there is no such lease."""
        if self.file(name).exists():
            with self._locked(name):
                found = self.read(name)
                if found is not None:
                    return self._write(change(found))
        raise no_such_lease(name)

    async def renew(self, name: str, now: float) -> None:
        """Renew it, from asynchronous code."""
        await asyncio.to_thread(self.update, name, lambda held: held.renew(now))

    def remove(self, name: str) -> None:
        """Remove the lease and everything beside it; nothing happens when it is gone already."""
        # The lease first: whoever watches it must not see it without what lies beside it.
        self.file(name).unlink(missing_ok=True)
        shutil.rmtree(self.root / name, ignore_errors=True)

    def names(self) -> list[str]:
        """Names of all leases."""
        return sorted(path.parent.name for path in self.root.glob(f"*/{_FILE}"))

    @contextlib.contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        with (self.directory(name) / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _write(self, lease: Lease) -> Lease:
        path = self.file(lease.name)
        draft = path.with_suffix(".tmp")
        with draft.open("w", encoding="utf-8") as file:
            json.dump(lease.to_dict(), file)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        return lease


def read_lease_file(path: str | os.PathLike[str]) -> Lease | None:
    """The lease in that file; None when there is none.

    Raises OSError, ValueError or TypeError when it is there but cannot be read: that is not "absent".
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    return Lease.from_dict(json.loads(text))
