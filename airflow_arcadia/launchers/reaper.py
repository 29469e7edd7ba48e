"""Find leases that nobody holds any more, and end what they still own.

The decisions are pure; :func:`reap` carries them out for the leases of one connection.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from airflow_arcadia.exceptions import ArcadiaError
from airflow_arcadia.lease import DEFAULT_DURATION_S, Identity, Lease

SKEW_S = 120.0
"""Clocks of Airflow's machines may differ by this much, or by a third of the lease where that is more."""
SETTLING_S = 60.0
"""How long a lease is left alone after its last change: its run may just be starting or ending it."""
ENDED_RUN = frozenset({"success", "failed"})

log = logging.getLogger(__name__)

RunState = Callable[[Identity], "str | None"]
"""State of the run that a lease belongs to; None when it is unknown or there is no such run."""


@dataclass(frozen=True)
class Held:
    """A lease as a reaper sees it.

    :param lease: None when there is none, or when it cannot be read.
    :param changed_at: when it last changed, seconds since the epoch.
    :param readable: False for a lease that is there but cannot be read.
    """

    name: str
    lease: Lease | None
    changed_at: float
    readable: bool = True


@dataclass(frozen=True)
class Reaped:
    """What was done, or would be done, about one lease.

    :param why: why nobody holds it any more.
    :param gpus: GPUs of what was still running under it.
    :param hours: since its last renewal.
    :param left: what is still there, as text.
    """

    name: str
    why: str
    gpus: int = 0
    hours: float = 0.0
    left: tuple[str, ...] = ()

    @property
    def gpu_hours(self) -> float:
        """GPU-hours held since the last renewal, which its end stops from growing."""
        return self.gpus * self.hours


class Backend(Protocol):
    """The leases of one connection, and what they own."""

    def held(self) -> Iterable[Held]:
        """Every lease, those that cannot be read and those that left something behind included."""

    def gpus(self, name: str) -> int:
        """GPUs of what still runs under that lease; 0 when nothing does."""

    def end(self, held: Held, *, grace_s: float) -> list[str]:
        """End what it owns, unless the lease was reserved anew meanwhile; returns what is left, as text."""


@dataclass(frozen=True)
class Report:
    """What one sweep did.

    :param reaped: leases that nobody held any more.
    :param kept: names of the leases that are held.
    :param errors: by lease, why it could not be dealt with.
    :param warm: of the leases that are held, those whose worker waits for its next run.
    :param lapsed: names of leases past their time of which something is still there after the sweep.
    :param gpus: of what runs under the leases that are kept, by lease.
    """

    reaped: list[Reaped] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    errors: dict[str, str] = field(default_factory=dict)
    warm: list[str] = field(default_factory=list)
    lapsed: list[str] = field(default_factory=list)
    gpus: dict[str, int] = field(default_factory=dict)

    @property
    def gpus_held(self) -> int:
        """GPUs of all that is kept."""
        return sum(self.gpus.values())

    @property
    def gpu_hours(self) -> float:
        """Of all of them."""
        return sum(item.gpu_hours for item in self.reaped)


def why_unheld(held: Held, run_state: RunState, now: float) -> str | None:
    """Why nobody holds the lease any more, or None while somebody may.

    :param run_state: only asked for a lease that can be read and is otherwise in order.
    """
    if held.lease is None:
        return _why_unheld_without_lease(held, now)
    lease = held.lease
    tolerance = max(SKEW_S, lease.duration_s / 3)
    if now >= lease.expires_at + tolerance:
        return f"its lease lapsed {now - lease.expires_at:.0f} s ago"
    if now < lease.renewed_at + SETTLING_S:
        return None
    if lease.released:
        return "its lease was released"
    if lease.warm is not None:
        return None  # of no run: its uses keep it, and then its warm period
    state = run_state(lease.identity)
    return f"its run ended ({state})" if state in ENDED_RUN else None


def _why_unheld_without_lease(held: Held, now: float) -> str | None:
    if held.readable:
        return "its lease is gone" if now >= held.changed_at + SETTLING_S else None
    # What it says is not known: it gets as long as most leases have.
    lapsed = now >= held.changed_at + DEFAULT_DURATION_S + SKEW_S
    return "its lease cannot be read and has not changed for long" if lapsed else None


def reap(
    backend: Backend,
    run_state: RunState,
    now: float,
    *,
    dry_run: bool = False,
    grace_s: float = 30.0,
    only: Callable[[Held], str | None] | None = None,
    among: Iterable[Held] | None = None,
    count_gpus: bool = True,
) -> Report:
    """End what nobody holds any more. One lease that cannot be dealt with does not keep the others.

    :param dry_run: only say what would be done.
    :param grace_s: seconds a worker may take to end before it is killed.
    :param only: decides in place of :func:`why_unheld`.
    :param among: the leases, where they have been read already.
    :param count_gpus: whether to ask for the GPUs of what is kept, a request for each lease in a cluster.
    """
    report = Report()
    for held in backend.held() if among is None else among:
        gone = False
        try:
            why = only(held) if only else why_unheld(held, run_state, now)
            if why is None:
                report.kept.append(held.name)
                if count_gpus:
                    report.gpus[held.name] = backend.gpus(held.name)
                if held.lease is not None and held.lease.warm is not None and not held.lease.warm.uses:
                    report.warm.append(held.name)
            else:
                gpus = backend.gpus(held.name)
                since = held.lease.renewed_at if held.lease else held.changed_at
                left = [] if dry_run else backend.end(held, grace_s=grace_s)
                hours = max(0.0, now - since) / 3600
                report.reaped.append(Reaped(held.name, why, gpus, hours, tuple(left)))
                gone = not dry_run and not left
        except (ArcadiaError, OSError) as error:
            log.warning("Lease %s was not dealt with: %s", held.name, error)
            report.errors[held.name] = str(error)
        if not gone and held.lease is not None and now >= held.lease.expires_at:
            report.lapsed.append(held.name)
    return report
