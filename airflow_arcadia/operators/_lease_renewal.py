"""Keep leases renewed while a task that blocks its thread runs."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Collection
from types import TracebackType

from airflow_arcadia.exceptions import ArcadiaError
from airflow_arcadia.launchers.wait import LEASE_RENEWAL_S
from airflow_arcadia.lease_store import LeaseError, Leases

log = logging.getLogger(__name__)


class LeaseRenewal:
    """Renews leases from its own thread, as a context manager: at once, then every ``interval_s`` seconds.

    A thread, because the event loop and the progress reports of what the task does must neither delay a
    renewal nor be blocked by one.

    :param leases: where the leases are kept.
    :param names: names of the leases.
    """

    def __init__(self, leases: Leases, names: Collection[str], interval_s: float = LEASE_RENEWAL_S) -> None:
        self._leases, self._names = leases, sorted(set(names))
        self._interval_s = interval_s
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="arcadia-lease-renewal", daemon=True)
        self.error: Exception | None = None
        """Why the leases can no longer be renewed: without them the workers are going to be torn down."""

    def __enter__(self) -> LeaseRenewal:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        while self.error is None:
            for name in self._names:
                self._renew(name)
            if self._end.wait(self._interval_s):
                return

    def _renew(self, name: str) -> None:
        try:
            asyncio.run(self._leases.renew(name, time.time()))
        except LeaseError as error:
            # Its owner is gone: the worker has been, or is being, torn down.
            self.error = error
        except (ArcadiaError, OSError) as error:
            if isinstance(error, ArcadiaError) and not error.retryable:
                self.error = error
                return
            log.error("Lease %s was not renewed, trying again in %g s: %s", name, self._interval_s, error)  # noqa: TRY400 - the message says it all
        except Exception as error:
            # A fault of ours: in silence, the worker would be collected under the running batch.
            log.exception("Lease %s cannot be renewed", name)
            self.error = error
