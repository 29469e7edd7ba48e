"""End leases in threads of their own, so that one that does not end keeps no other waiting."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable

from airflow_arcadia.exceptions import ArcadiaError
from airflow_arcadia.launchers.reaper import Backend, Held

log = logging.getLogger(__name__)


class EndsAside:
    """A :class:`~airflow_arcadia.launchers.reaper.Backend` whose :meth:`end` returns at once.

    A pod of a node that is lost takes minutes, or for ever, to go. What happened is logged.

    :param backend: the leases, and what ends them.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._ending: dict[str, threading.Thread] = {}

    def held(self) -> Iterable[Held]:
        """Every lease but those that are being ended."""
        self._ending = {name: thread for name, thread in self._ending.items() if thread.is_alive()}
        return [held for held in self._backend.held() if held.name not in self._ending]

    def gpus(self, name: str) -> int:
        """GPUs of what still runs under that lease."""
        return self._backend.gpus(name)

    def end(self, held: Held, *, grace_s: float) -> list[str]:
        """Start to end what the lease owns; what is left of it is ended again later."""
        name = f"arcadia-end-{held.name}"
        thread = threading.Thread(target=self._end, args=(held, grace_s), name=name, daemon=True)
        self._ending[held.name] = thread
        thread.start()
        return []

    def _end(self, held: Held, grace_s: float) -> None:
        try:
            left = self._backend.end(held, grace_s=grace_s)
        except (ArcadiaError, OSError) as error:
            log.warning("Lease %s was not ended and is tried again: %s", held.name, error)
        except Exception:  # a thread must not end in silence
            log.exception("Lease %s was not ended and is tried again.", held.name)
        else:
            if left:
                log.warning("Of lease %s is still there: %s", held.name, ", ".join(left))
            else:
                log.info("Nothing of lease %s is left.", held.name)
