"""Pure arithmetic of warm workers: workers that outlive their runs and are adopted by equal ones.

A warm worker has a lease of its own, which belongs to no run. Each run that needs the worker holds a *use*
in it, renewed with the run's own lease. The lease's ``renewed_at`` and ``duration_s`` say when the last of
its uses lapses, or its warm period ends, whichever is later: whoever watches leases needs to know nothing of
uses. A lease is never used again once it has ended: the next worker gets one of the next generation, so that
an end that is under way can never reach another worker.

All functions are pure, ``(lease, now) -> lease``; the stores apply them atomically.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from airflow_arcadia.exceptions import ArcadiaConfigError
from airflow_arcadia.lease import WARM, Identity, Lease, Owned, Use, Warm

KeepWarm = float | str | timedelta | None
"""A duration: ``"30m"``, ``"1h 30m"``, seconds, or a timedelta; None, 0 and empty text mean "do not keep"."""

MIN_KEEP_S = 15.0
MAX_KEEP_S = 24 * 3600.0
"""Longest warm period: what a worker that no run comes for may cost at most."""
MARGIN_S = 5.0
"""A worker whose lease ends sooner than this is not adopted: it may be ending already."""
RETIRE_AFTER_S = 12 * 3600.0
"""A worker older than this is not adopted any more: half of what a pod may run by default."""

_OF_NO_DAG = ""
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*(d|h|m|s)\s*", re.IGNORECASE)
_SECONDS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}


def parse_keep_warm(value: object) -> float:
    """Seconds to keep the worker for after its last run; 0 for not at all.

    Raises :class:`ArcadiaConfigError` for what is not a duration of 15 seconds to 24 hours.
    """
    if isinstance(value, timedelta):
        seconds = value.total_seconds()
    elif value is None or (isinstance(value, str) and value.strip() in {"", "None"}):
        return 0.0
    else:
        seconds = math.nan if isinstance(value, bool) else _seconds(str(value).strip())
    if seconds == 0:
        return 0.0
    if not MIN_KEEP_S <= seconds <= MAX_KEEP_S:
        raise ArcadiaConfigError(
            f"keep_warm is {value!r}.",
            what_to_do=f"Give {MIN_KEEP_S:.0f} seconds to {MAX_KEEP_S / 3600:.0f} hours as text ('30m', "
            "'1h 30m'), seconds or a timedelta, or leave it out.",
        )
    return seconds


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        parts = _PART.findall(text)
        if not parts or _PART.sub("", text):
            return math.nan
        return sum(float(number) * _SECONDS[unit.lower()] for number, unit in parts)


def identity(key: str, label: str, generation: int) -> Identity:
    """Whom the lease of a warm worker belongs to: no run, but everything with that key.

    :param label: for people, e.g. the model's name.
    """
    return Identity(_OF_NO_DAG, key, f"warm-{label}", generation)


def use_of(run: Lease, keep_s: float, now: float) -> Use:
    """The use that a run holds: for as long as its own lease."""
    return Use(run.name, now, run.duration_s, keep_s)


@dataclass(frozen=True)
class Request:
    """What a run asks for.

    :param key: digest of all that the worker is made from.
    :param label: for people.
    :param workers: how many workers.
    :param lifetime_s: after how long something outside ends the worker, if anything does.
    """

    key: str
    label: str
    workers: int = 1
    lifetime_s: float | None = None

    def new(self, generation: int, use: Use, now: float) -> Lease:
        """The lease of a worker that is still to be launched, by the run that holds ``use``."""
        who = identity(self.key, self.label, generation)
        retires_at = now + min(RETIRE_AFTER_S, (self.lifetime_s or math.inf) / 2)
        warm = Warm(self.key, self.workers, retires_at, uses=(use,), launcher=use.user)
        return _settled(Lease(who.lease_name, who, now, now, use.duration_s, warm=warm), now)


def of_key(leases: Iterable[Lease], key: str) -> list[Lease]:
    """Those of warm workers with that key, the latest generation first."""
    found = [lease for lease in leases if lease.warm is not None and lease.warm.key == key]
    return sorted(found, key=lambda lease: lease.identity.map_index, reverse=True)


def adoptable(lease: Lease, user: str, now: float) -> bool:
    """Whether a run may use it: one that already does may always, unless it has ended."""
    if lease.warm is None or lease.lapsed(now):
        return False
    if any(use.user == user for use in lease.warm.uses):
        return True
    return now < min(lease.expires_at - MARGIN_S, lease.warm.retires_at)


def adopt(lease: Lease, use: Use, now: float) -> Lease:
    """The lease with the use in it; unchanged where it may not be adopted (see :func:`holds`)."""
    return _with_use(lease, use, now) if adoptable(lease, use.user, now) else lease


def holds(lease: Lease, user: str, now: float) -> bool:
    """Whether that run uses it, and it has not ended."""
    return bool(_warm(lease) and not lease.lapsed(now) and any(u.user == user for u in _warm(lease).uses))


def renew_use(lease: Lease, run: Lease, now: float) -> Lease:
    """With the use of that run renewed, as its own lease has just been.

    A use that lapsed meanwhile is made again, if others have kept the worker.
    """
    if lease.warm is None or lease.released:
        return lease
    before = next((use for use in lease.warm.uses if use.user == run.name), None)
    if before is None:
        return lease if lease.lapsed(now) else _with_use(lease, use_of(run, keep_of(run), now), now)
    renewed = dataclasses.replace(before, renewed_at=max(before.renewed_at, now), duration_s=run.duration_s)
    return _with_use(lease, renewed, now)


def others(lease: Lease, user: str, now: float) -> list[str]:
    """The other runs whose use has not lapsed."""
    return [use.user for use in _warm(lease).uses if use.user != user and use.expires_at > now]


def give_back(lease: Lease, user: str, now: float, *, keep: bool) -> Lease:
    """Without that run's use. The last one out starts the warm period, or releases the lease.

    :param keep: whether the worker is fit for another run.
    """
    warm = _warm(lease)
    used = next((use for use in warm.uses if use.user == user), None)
    if used is None or lease.released:
        return lease
    left = tuple(use for use in warm.uses if use.user != user)
    kept_until = max(warm.kept_until, now + used.keep_s)
    # While others hold it, whether it is fit is for the last of them to say.
    if not others(lease, user, now) and (not keep or lease.lapsed(now) or now >= warm.retires_at):
        return _replaced(lease, uses=left).release()
    return _settled(_replaced(lease, uses=left, kept_until=kept_until), now)


def abandon(lease: Lease, user: str, now: float) -> Lease:
    """Without that run's use, and released unless another run holds it: its worker is not fit for any."""
    left = _replaced(lease, uses=tuple(use for use in _warm(lease).uses if use.user != user))
    return _settled(left, now) if others(lease, user, now) else left.release()


def launched(lease: Lease) -> bool:
    """Whether all of its workers have been launched."""
    return len(_warm(lease).handles) >= _warm(lease).workers


def take_launch(lease: Lease, user: str, now: float) -> Lease:
    """With ``user`` as the one that launches, unless another run that still holds it does, or has.

    A run that crashed between the two is replaced once its use has ended or lapsed.
    """
    warm = _warm(lease)
    if launched(lease) or warm.launcher in others(lease, user, now):
        return lease
    return _replaced(lease, launcher=user)


def may_launch(lease: Lease, user: str) -> bool:
    """Whether that run is the one that launches."""
    return not launched(lease) and _warm(lease).launcher == user


def record_handle(lease: Lease, name: str, handle: Mapping[str, Any]) -> Lease:
    """With a worker that was launched."""
    return _replaced(lease, handles={**_warm(lease).handles, name: dict(handle)})


def record_use(run: Lease, name: str, keep_s: float) -> Lease:
    """The run's lease with the lease ``name`` of the warm worker that it uses, in place of an earlier one."""
    others_owned = tuple(item for item in run.owned if item.kind != WARM)
    return dataclasses.replace(run, owned=others_owned).record(Owned(WARM, name, WARM, {"keep_s": keep_s}))


def keep_of(run: Lease) -> float:
    """Seconds that a run asked for its worker to be kept, as its own lease records it."""
    item = next((item for item in run.owned if item.kind == WARM), None)
    return float(item.where.get("keep_s", 0.0)) if item else 0.0


def _warm(lease: Lease) -> Warm:
    return lease.warm or Warm("", 0, 0.0)


def _replaced(lease: Lease, **changes: Any) -> Lease:
    return dataclasses.replace(lease, warm=dataclasses.replace(_warm(lease), **changes))


def _with_use(lease: Lease, use: Use, now: float) -> Lease:
    uses = tuple(other for other in _warm(lease).uses if other.user != use.user)
    return _settled(_replaced(lease, uses=(*uses, use)), now)


def _settled(lease: Lease, now: float) -> Lease:
    """With its own end set to that of the last use, or of the warm period, whichever is later."""
    warm = _warm(lease)
    uses = tuple(use for use in warm.uses if use.expires_at > now)
    ends_at = max([warm.kept_until, *(use.expires_at for use in uses)])
    if ends_at <= now:
        return lease
    return dataclasses.replace(_replaced(lease, uses=uses), renewed_at=now, duration_s=ends_at - now)
