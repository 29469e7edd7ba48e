"""Keep a lease renewed for as long as whoever needs its worker is alive."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
from functools import partial
from typing import Any, NoReturn

from airflow_arcadia.exceptions import ArcadiaError, LeaseError
from airflow_arcadia.launchers.background import Background
from airflow_arcadia.lease_store import Leases

RETRY_S = 5.0
"""Seconds until a renewal that failed is tried again: well within a third of any lease."""

_log = logging.getLogger(__name__)


async def keep_renewed(leases: Leases, name: str, log: Any = _log) -> NoReturn:
    """Renew lease ``name`` every third of its duration, until cancelled.

    Transient failures (an API server that is away, a lease that cannot be read) are logged and tried again.
    Raises :class:`~airflow_arcadia.exceptions.LeaseError` once there is no such lease, and every
    :class:`ArcadiaError` that a retry cannot mend.
    """
    while True:
        pause = RETRY_S
        try:
            lease = await leases.renew(name, time.time())
            pause = lease.renewal_interval_s
        except LeaseError:
            raise
        except (ArcadiaError, OSError) as error:
            if isinstance(error, ArcadiaError) and not error.retryable:
                raise
            log.warning("Lease %s was not renewed; trying again in %.0f s: %s", name, RETRY_S, error)
        await asyncio.sleep(pause)


class LeaseKeeper(Background):
    """Renews leases from a thread of its own, as a context manager. It ends with the process.

    :param leases: where the leases are.
    :param names: the leases to renew.
    :param log: gets a warning for every renewal that failed.
    """

    def __init__(self, leases: Leases, names: Iterable[str], log: Any = _log) -> None:
        super().__init__("arcadia-lease-keeper", [partial(self._keep, name) for name in sorted(set(names))])
        self._leases = leases
        self._log = log
        self.error: Exception | None = None
        """Why a lease is no longer renewed: without it its worker is going to be torn down."""

    async def _keep(self, name: str) -> None:
        try:
            await keep_renewed(self._leases, name, self._log)
        except Exception as error:  # noqa: BLE001 - a thread must not end in silence
            self.error = error
            self._log.warning("Lease %s is no longer renewed: %s", name, error)
