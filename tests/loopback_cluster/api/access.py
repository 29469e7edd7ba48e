"""Who may do what: RBAC for tokens that have roles, and requests that are made to fail."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from tests.loopback_cluster.api.kinds import Target
from tests.loopback_cluster.api.status import ApiFailure

_REASONS = {
    401: "Unauthorized",
    403: "Forbidden",
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServiceUnavailable",
    504: "Timeout",
}


_LOADING_S = 0.08
"""What a real server takes after its first answer to load its RBAC objects: 40 to 80 ms."""
_NEEDS_NO_ROLE = frozenset({None, "admin"})
"""The cluster's own parts, and the group system:masters, whom no Role has to allow anything."""


@dataclass
class Fault:
    """Requests of one token that fail.

    :param verb: only this verb, such as ``get`` or ``watch``; any when None.
    :param resource: only this resource, such as ``pods`` or ``pods/log``; any when None.
    :param left: how many more of them.
    """

    token: str
    code: int
    verb: str | None
    resource: str | None
    left: int

    def hits(self, token: str | None, verb: str, resource: str) -> bool:
        """Whether this request is one of them."""
        fits = self.verb in {None, verb} and self.resource in {None, resource}
        return self.left > 0 and token == self.token and fits


@dataclass
class Access:
    """Bearer token → the namespaced Roles it is bound to; a token without an entry may do everything.

    :ivar denied: (verb, resource) pairs that nobody with roles may do, whatever the roles say.
    :ivar used: (verb, group, resource) that were asked for by tokens with roles.
    """

    roles: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    denied: set[tuple[str, str]] = field(default_factory=set)
    used: set[tuple[str, str, str]] = field(default_factory=set)
    faults: list[Fault] = field(default_factory=list)
    _starting: bool = False
    _loaded_at: float | None = None

    def restart(self) -> None:
        """Forget the RBAC objects, as a server that starts anew has not read them yet."""
        self._starting, self._loaded_at = True, None

    def _loading(self) -> bool:
        """Whether they are still being read: whoever connects while the server starts meets that."""
        if self._starting:
            now = time.monotonic()
            self._loaded_at = self._loaded_at or now + _LOADING_S
            self._starting = now < self._loaded_at
        return self._starting

    def require(self, token: str | None, verb: str, target: Target) -> None:
        """Raise 403 in the real server's words, or the failure that was ordered; or return."""
        resource = f"{target.kind.plural}/{target.part}" if target.part else target.kind.plural
        for fault in self.faults:
            if fault.hits(token, verb, resource):
                fault.left -= 1
                if fault.code == 403:
                    raise _forbidden(verb, resource, target)
                reason = _REASONS.get(fault.code, "InternalError")
                raise ApiFailure(fault.code, reason, f"the test made {verb} {resource} fail")
        if token not in _NEEDS_NO_ROLE and self._loading():
            raise _forbidden(verb, resource, target)
        roles = self.roles.get(token or "")
        if roles is None:
            return
        self.used.add((verb, target.kind.group, resource))
        allowed = (verb, resource) not in self.denied and any(
            _allows(role, verb, resource, target) for role in roles
        )
        if not allowed:
            raise _forbidden(verb, resource, target)

    def allows(self, token: str | None, verb: str, target: Target) -> bool:
        """What a SelfSubjectAccessReview answers; asking is not counted as using a right."""
        roles = self.roles.get(token or "")
        resource = f"{target.kind.plural}/{target.part}" if target.part else target.kind.plural
        if roles is None:
            return True
        return (verb, resource) not in self.denied and any(_allows(r, verb, resource, target) for r in roles)


def _forbidden(verb: str, resource: str, target: Target) -> ApiFailure:
    group = target.kind.group
    where = f' in the namespace "{target.namespace}"' if target.namespace else " at the cluster scope"
    what = target.kind.plural + (f".{group}" if group else "")
    what += f' "{target.name}"' if target.name else ""
    who = "system:serviceaccount:tests:airflow"
    said = f'User "{who}" cannot {verb} resource "{resource}" in API group "{group}"{where}'
    return ApiFailure(403, "Forbidden", f"{what} is forbidden: {said}")


def _allows(role: dict[str, Any], verb: str, resource: str, target: Target) -> bool:
    if role["metadata"].get("namespace") != target.namespace:
        return False
    for rule in role["rules"]:
        named = rule.get("resourceNames")
        if (
            {verb, "*"} & set(rule["verbs"])
            and {target.kind.group, "*"} & set(rule["apiGroups"])
            and {resource, "*"} & set(rule["resources"])
            and (not named or target.name in named)
        ):
            return True
    return False
