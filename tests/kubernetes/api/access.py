"""Who may do what: RBAC for tokens that have a role, and switches that take a right away."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tests.kubernetes.api.kinds import Target
from tests.kubernetes.api.status import ApiFailure


@dataclass
class Access:
    """Bearer token → the namespaced Roles it is bound to; a token without roles may do everything.

    :ivar denied: (verb, resource) pairs that nobody with roles may do, whatever the roles say.
    :ivar used: (verb, group, resource) that were asked for by tokens with roles.
    """

    roles: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    denied: set[tuple[str, str]] = field(default_factory=set)
    used: set[tuple[str, str, str]] = field(default_factory=set)

    def require(self, token: str | None, verb: str, target: Target) -> None:
        """Raise 403 in the real server's words, or return."""
        roles = self.roles.get(token or "")
        if roles is None:
            return
        resource = f"{target.kind.plural}/{target.part}" if target.part else target.kind.plural
        self.used.add((verb, target.kind.group, resource))
        allowed = (verb, resource) not in self.denied and any(
            _allows(role, verb, target.kind.group, resource, target.namespace) for role in roles
        )
        if not allowed:
            where = f' in the namespace "{target.namespace}"' if target.namespace else " at the cluster scope"
            raise ApiFailure(
                403,
                "Forbidden",
                f"{resource}{'.' + target.kind.group if target.kind.group else ''} is forbidden: User "
                f'"system:serviceaccount:tests:airflow" cannot {verb} resource "{resource}" in API group '
                f'"{target.kind.group}"{where}',
            )


def _allows(role: dict[str, Any], verb: str, group: str, resource: str, namespace: str) -> bool:
    return role["metadata"].get("namespace") == namespace and any(
        verb in rule["verbs"] and group in rule["apiGroups"] and resource in rule["resources"]
        for rule in role["rules"]
    )
