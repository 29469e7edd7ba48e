"""Keep the worker's own lease renewed while a batch that runs in the worker gets further."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path

from airflow_arcadia.exceptions import ArcadiaError
from airflow_arcadia.lease_store import LeaseStore
from airflow_arcadia.runtime.log import say

_RETRY_S = 5.0


class LeaseExtension:
    """Renews a lease every third of its duration, when it is asked to at least that often.

    A batch in the worker needs no Airflow; while it makes progress somebody will want its answers. A lease
    that was released stays released.

    :param path: the lease's file; None for a worker that runs without a lease of this machine.
    """

    def __init__(self, path: str | os.PathLike[str] | None) -> None:
        self._path = Path(path) if path else None
        self._due_at = 0.0
        self._renewing: threading.Thread | None = None

    def renew_when_due(self) -> None:
        """Renew if it is time to. Returns at once: the file is written by a thread."""
        if self._path is None or time.monotonic() < self._due_at:
            return
        if self._renewing is not None and self._renewing.is_alive():
            return
        self._due_at = time.monotonic() + _RETRY_S
        self._renewing = threading.Thread(target=self._renew, args=(self._path,), daemon=True)
        self._renewing.start()

    def _renew(self, path: Path) -> None:
        store = LeaseStore(path.parent.parent)
        try:
            lease = store.update(path.parent.name, lambda held: held.renew(time.time()))
        except (ArcadiaError, OSError) as error:
            say(f"the lease was not renewed: {error}")
            return
        for use in lease.warm.uses if lease.warm else ():
            # Whose batch it is, is not known; a run that is gone has no lease any more.
            with contextlib.suppress(ArcadiaError, OSError):
                store.update(use.user, lambda held: held.renew(time.time()))
        self._due_at = time.monotonic() + lease.renewal_interval_s
