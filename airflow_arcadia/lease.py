"""Pure lease arithmetic: who owns what, until when.

One lease per run and worker group. Everything started for the group is recorded under it *before* it is
started, so that ending what the lease owns ends everything, whichever process died in between. Times are
seconds since the epoch and always passed in.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from airflow_arcadia.exceptions import ArcadiaConfigError, UnreadableLeaseError

DEFAULT_DURATION_S = 3600.0
"""How long a lease holds without a renewal: longer than the gap between two tasks of a busy scheduler."""
MIN_DURATION_S = 15.0
"""Shortest lease: whoever renews it looks every few seconds, and three renewals must fit in."""
MAX_DURATION_S = 7 * 24 * 3600.0
"""Longest lease: what a worker that nobody needs any more may cost at most."""

MAX_NAME = 52
"""Longest lease name: a DNS label is 63 characters and the worker's parts add up to 11 more."""
WARM = "warm"
"""Kind under which a run's lease records the lease of the warm worker that it uses."""
_RENEWALS_PER_DURATION = 3
"""Two renewals may fail before the lease lapses."""


def unreadable(name: str, why: object) -> UnreadableLeaseError:
    """The error for a lease that is there but cannot be read."""
    return UnreadableLeaseError(
        f"Lease {name} cannot be read: {why}.",
        still_running="What it owns still runs until the lease ends.",
        what_to_do="Run the teardown, which finds what belongs to the lease without reading it.",
    )


def parse_duration(value: object) -> float:
    """A lease's duration in seconds, from a number or its text.

    Raises :class:`ArcadiaConfigError` for anything outside 15 seconds to 7 days.
    """
    try:
        seconds = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        seconds = math.nan
    if not MIN_DURATION_S <= seconds <= MAX_DURATION_S:
        raise ArcadiaConfigError(
            f"lease_duration is {value!r}.",
            what_to_do=f"Use {MIN_DURATION_S:.0f} to {MAX_DURATION_S:.0f} seconds: it is how long a worker "
            "outlives the last sign of life from Airflow.",
        )
    return seconds


@dataclass(frozen=True)
class Identity:
    """Whom a lease belongs to. Never the try number: a retry must find its own work again."""

    dag_id: str
    run_id: str
    group: str
    map_index: int = -1

    @property
    def lease_name(self) -> str:
        """DNS label that starts with a letter; one for all retries, another for every run and group."""
        key = f"{self.dag_id}\0{self.run_id}\0{self.group}\0{self.map_index}"
        digest = hashlib.sha256(key.encode()).hexdigest()[:10]
        readable = re.sub(r"[^a-z0-9]+", "-", self.group.lower()).strip("-") or "worker"
        if readable[0].isdigit():
            # Services and RayClusters are named after it: RFC 1035 has no label that starts with a digit.
            readable = f"worker-{readable}"
        return f"{readable[: MAX_NAME - 11].strip('-')}-{digest}"


@dataclass(frozen=True)
class Owned:
    """One thing a lease owns.

    :param kind: ``worker`` or ``ray_cluster``.
    :param name: unique under the lease.
    :param launcher: what can observe and end it: ``process``, ``pod``, ``local_head``, …
    :param where: what the launcher needs to find it; empty while it is only intended.
    """

    kind: str
    name: str
    launcher: str
    where: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Use:
    """A run's hold on a worker that it shares with other runs; it lapses as a lease does.

    :param user: name of the run's own lease.
    :param duration_s: seconds it holds without a renewal.
    :param keep_s: seconds the worker stays warm once this use has ended.
    """

    user: str
    renewed_at: float
    duration_s: float
    keep_s: float

    @property
    def expires_at(self) -> float:
        """When it lapses unless renewed."""
        return self.renewed_at + self.duration_s


@dataclass(frozen=True)
class Warm:
    """What the lease of a worker that outlives its runs has beside those of other leases.

    :param key: digest of all that the worker is made from; runs with the same key share it.
    :param workers: how many workers belong to it.
    :param retires_at: no other run adopts it after that, seconds since the epoch.
    :param kept_until: how long a run that has ended asked for it to be kept.
    :param uses: the runs that hold it.
    :param launcher: the user that provisions and launches it.
    :param handles: :class:`~airflow_arcadia.worker.WorkerHandle` by worker name, as dicts, once launched.
    """

    key: str
    workers: int
    retires_at: float
    kept_until: float = 0.0
    uses: tuple[Use, ...] = ()
    launcher: str = ""
    handles: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)

    def renew(self, now: float, duration_s: float) -> Warm:
        """With every use renewed, or the warm period where there is none."""
        uses = tuple(dataclasses.replace(use, renewed_at=max(now, use.renewed_at)) for use in self.uses)
        kept_until = self.kept_until if uses else max(self.kept_until, now + duration_s)
        return dataclasses.replace(self, uses=uses, kept_until=kept_until)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Warm:
        """From its JSON form; unknown fields are dropped."""
        uses = tuple(Use(**_known(Use, use)) for use in raw.get("uses", ()))
        return cls(**{**_known(cls, raw), "uses": uses})


@dataclass(frozen=True)
class Lease:
    """Who owns what, until when.

    :param duration_s: seconds it holds without a renewal.
    :param released: whether its owner has given it back; what it owns must end.
    :param uid: uid of the Kubernetes Lease that it is kept in; empty for a file.
    :param warm: for a worker that outlives its runs: who uses it, and how long it is kept (see ``warm.py``).
    :param extra: fields that a later version wrote; kept so that a renewal does not drop them.
    """

    name: str
    identity: Identity
    created_at: float
    renewed_at: float
    duration_s: float = DEFAULT_DURATION_S
    owned: tuple[Owned, ...] = ()
    released: bool = False
    uid: str = ""
    warm: Warm | None = None
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def expires_at(self) -> float:
        """When it lapses unless renewed."""
        return self.renewed_at + self.duration_s

    @property
    def warm_name(self) -> str | None:
        """Name of the lease of the warm worker that this run's lease uses, if it uses one."""
        return next((item.name for item in self.owned if item.kind == WARM), None)

    @property
    def renewal_interval_s(self) -> float:
        """Seconds between two renewals: those that the shortest of several uses needs."""
        uses = self.warm.uses if self.warm else ()
        return min((use.duration_s for use in uses), default=self.duration_s) / _RENEWALS_PER_DURATION

    @property
    def last_renewed_at(self) -> float:
        """When it was last renewed: by the one of several users that has not done so for longest."""
        uses = self.warm.uses if self.warm else ()
        return min((use.renewed_at for use in uses), default=self.renewed_at)

    def lapsed(self, now: float) -> bool:
        """Whether nobody on Airflow's side holds it any more."""
        return self.released or now >= self.expires_at

    def renew(self, now: float) -> Lease:
        """The lease as renewed at ``now``; a clock that went backwards never shortens it.

        That of a warm worker is renewed for all who use it: whoever does not say for whom speaks for all.
        """
        renewed = dataclasses.replace(self, renewed_at=max(now, self.renewed_at))
        if self.warm is None:
            return renewed
        return dataclasses.replace(renewed, warm=self.warm.renew(now, self.duration_s))

    def release(self) -> Lease:
        """The lease as given back: its owner is done, what it owns must end."""
        return dataclasses.replace(self, released=True)

    def record(self, item: Owned) -> Lease:
        """With ``item`` recorded, in place of an earlier record of the same kind and name."""
        others = tuple(o for o in self.owned if (o.kind, o.name) != (item.kind, item.name))
        return dataclasses.replace(self, owned=(*others, item))

    def find(self, kind: str, name: str) -> Owned | None:
        """The record of that kind and name, if any."""
        return next((o for o in self.owned if (o.kind, o.name) == (kind, name)), None)

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe form."""
        raw = dataclasses.asdict(self)
        if self.warm is None:
            del raw["warm"]
        return {**raw.pop("extra"), **raw}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Lease:
        """Inverse of :meth:`to_dict`. Unknown fields are kept, so that a later version's lease can be read.

        Raises :class:`UnreadableLeaseError` when a field that every lease has is missing or of another type.
        """
        try:
            identity = Identity(**_known(Identity, raw["identity"]))
            lease = cls(
                name=str(raw["name"]),
                identity=identity,
                created_at=float(raw.get("created_at", raw["renewed_at"])),
                renewed_at=float(raw["renewed_at"]),
                duration_s=float(raw.get("duration_s", DEFAULT_DURATION_S)),
                owned=tuple(Owned(**_known(Owned, item)) for item in raw.get("owned", ())),
                released=bool(raw.get("released", False)),
                uid=str(raw.get("uid", "")),
                warm=Warm.from_dict(raw["warm"]) if raw.get("warm") else None,
                extra={key: value for key, value in raw.items() if key not in _FIELDS},
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            name = raw.get("name", "?") if isinstance(raw, Mapping) else "?"
            raise unreadable(str(name), f"{type(error).__name__}: {error}") from error
        if not (math.isfinite(lease.renewed_at) and math.isfinite(lease.duration_s)):
            raise unreadable(lease.name, "its times are not numbers")
        return lease


@dataclass(frozen=True)
class LeaseWatch:
    """What a process that must end with its lease knows of that lease.

    It counts the duration from when it *saw* the last renewal, by its own clock, so that a clock that differs
    from Airflow's neither ends a worker early nor keeps it for longer than one duration more.

    :param seen_at: when the last renewal was seen, seconds since the epoch by the watcher's own clock.
    :param lease: the last lease that could be read; None before the first.
    :param gone: whether the lease was found to be absent.
    """

    seen_at: float
    lease: Lease | None = None
    gone: bool = False

    @classmethod
    def start(cls, now: float) -> LeaseWatch:
        """A watch that has not read its lease yet."""
        return cls(now)

    def read(self, lease: Lease | None, now: float) -> LeaseWatch:
        """After the lease was read; None when there is none. Nothing changes when it could not be read."""
        if lease is None:
            return dataclasses.replace(self, gone=True)
        if self.lease is None:
            # Nothing to compare with: a renewal that lies in the future was made by a clock ahead of ours.
            return LeaseWatch(min(lease.renewed_at, now), lease)
        renewed = (lease.renewed_at, lease.duration_s) != (self.lease.renewed_at, self.lease.duration_s)
        return LeaseWatch(max(self.seen_at, now) if renewed else self.seen_at, lease)

    @property
    def ends_at(self) -> float:
        """When the lease counts as lapsed unless a renewal is seen before."""
        return self.seen_at + (self.lease.duration_s if self.lease else DEFAULT_DURATION_S)

    def lapsed(self, now: float) -> bool:
        """Whether no renewal was seen for a whole duration."""
        return now >= self.ends_at

    def ended(self, now: float) -> str | None:
        """Why the lease no longer holds, or None while it does."""
        if self.gone:
            return "its lease is gone"
        if self.lease is not None and self.lease.released:
            return "its lease was released"
        return f"its lease lapsed {now - self.ends_at:.0f} s ago" if self.lapsed(now) else None


_FIELDS = frozenset(field.name for field in dataclasses.fields(Lease)) - {"extra"}


def _known(cls: type[Identity | Owned | Use | Warm], raw: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that this version knows."""
    names = {field.name for field in dataclasses.fields(cls)}
    return {key: value for key, value in raw.items() if key in names}
