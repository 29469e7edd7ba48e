"""Whether the lease that a process runs under still holds."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from airflow_arcadia import lease
from airflow_arcadia.exceptions import ArcadiaError, UnreadableLeaseError
from airflow_arcadia.lease import Lease
from airflow_arcadia.lease_store import LeaseStore, read_lease_file, users_holding
from airflow_arcadia.processes import find_marked
from airflow_arcadia.runtime.log import say

LEASE_POLL_S = 5.0


class LeaseWatch:
    """Looks at a lease's file now and then.

    A file that cannot be read does not end anything by itself, but it does not hold for ever either: the last
    good reading counts until it lapses.

    :param path: the lease's file; None for a process that runs without a lease.
    :param shared: whether it holds for as long as one of the leases does that use what it owns.
    :param poll_s: seconds between two looks.
    :param clock: seconds since the epoch.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        *,
        shared: bool = False,
        poll_s: float = LEASE_POLL_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._path = path
        self._shared = shared
        self._users: list[str] = []
        self._poll_s = poll_s
        self._clock = clock
        self._next = 0.0
        self._unreadable = ""
        self._watch = lease.LeaseWatch.start(clock())

    @property
    def last(self) -> Lease | None:
        """The last good reading."""
        return self._watch.lease

    def check(self) -> str | None:
        """Why the lease no longer holds; None while it does, and between two looks."""
        if self._path is None or time.monotonic() < self._next:
            return None
        self._next = time.monotonic() + self._poll_s
        now = self._clock()
        ended = self._check(self._path, now)
        if ended and self._shared and (users := users_holding(Path(self._path).parent, now)):
            if users != self._users:
                say(f"{ended}, but it is still used under {', '.join(users)}")
                self._users = users
            return None
        return ended

    def _check(self, path: str | os.PathLike[str], now: float) -> str | None:
        try:
            found = read_lease_file(path)
        except (OSError, UnreadableLeaseError) as error:
            return self._without_reading(str(error.__cause__ or error), now)
        if self._unreadable:
            say("the lease can be read again")
            self._unreadable = ""
        self._watch = self._watch.read(found, now)
        return self._watch.ended(now)

    def _without_reading(self, why: str, now: float) -> str | None:
        if self._watch.lapsed(now):
            return f"its lease cannot be read ({why}) and lapsed by its last good reading"
        if why != self._unreadable:
            self._unreadable = why
            left_s = self._watch.ends_at - now
            say(f"the lease cannot be read ({why}); it counts as held for {left_s:.0f} s more")
        return None


def remove_warm_lease(file: Path) -> None:
    """Remove the lease of a warm worker whose time is over: no run is left that would tear it down."""
    store, name = LeaseStore(file.parent.parent), file.parent.name

    def is_abandoned() -> bool:
        lease = store.read(name)
        if lease is None or lease.warm is None or lease.released:
            return False  # whoever releases a lease tears it down
        return lease.lapsed(time.time())

    try:
        # Looked at before it is locked: a teardown holds the lock while it waits for this process to end.
        if not is_abandoned():
            return
        with store.locked(name):
            if is_abandoned() and all(process.pid == os.getpid() for process in find_marked(name)):
                store.remove(name)
    except (ArcadiaError, OSError) as error:
        say(f"the lease is left to the reaper: {error}")
