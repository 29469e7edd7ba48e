"""Pure lease arithmetic: who owns what, until when.

One lease per run and worker group. Everything started for the group is recorded under it *before* it is
started, so that ending what the lease owns ends everything, whoever died in between. Times are seconds
since the epoch and always passed in.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

DEFAULT_DURATION_S = 3600.0
"""How long a lease holds without a renewal: longer than the gap between two tasks of a busy scheduler, and
than a task of the user's own in between, which renews nothing."""

MAX_NAME = 52
"""Longest lease name: a DNS label is 63 characters and the worker's parts add up to 11 more."""


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
    :param launcher: which room can observe and end it: ``process``, ``pod``, ``local_head``, …
    :param where: what that room needs to find it; empty while it is only intended.
    """

    kind: str
    name: str
    launcher: str
    where: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Lease:
    """Who owns what, until when.

    :param uid: uid of the Kubernetes Lease that it is kept in; empty for a file.
    """

    name: str
    identity: Identity
    created_at: float
    renewed_at: float
    duration_s: float = DEFAULT_DURATION_S
    owned: tuple[Owned, ...] = ()
    released: bool = False
    uid: str = ""

    @property
    def expires_at(self) -> float:
        """When it lapses unless renewed."""
        return self.renewed_at + self.duration_s

    def lapsed(self, now: float) -> bool:
        """Whether nobody on Airflow's side holds it any more."""
        return self.released or now >= self.expires_at

    def renew(self, now: float) -> Lease:
        """The lease as renewed at ``now``; a clock that went backwards never shortens it."""
        return dataclasses.replace(self, renewed_at=max(now, self.renewed_at))

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
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Lease:
        """Inverse of :meth:`to_dict`."""
        return cls(
            **{
                **raw,
                "identity": Identity(**raw["identity"]),
                "owned": tuple(Owned(**item) for item in raw["owned"]),
            }
        )
