"""Ask the API server what the credentials may do, before anything needs it.

A SelfSubjectAccessReview (``authorization.k8s.io/v1``) is open to every authenticated user and changes
nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

from airflow_arcadia.kubernetes.api import Session
from airflow_arcadia.kubernetes.kinds import EVENT, LEASE, POD, RAY_CLUSTER, SECRET, SERVICE, WORKER, Kind

_REVIEW = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"


@dataclass(frozen=True)
class Right:
    """One verb on one resource in the namespace of the workers."""

    verb: str
    kind: Kind
    subresource: str = ""

    def __str__(self) -> str:
        resource = f"{self.kind.plural}/{self.subresource}" if self.subresource else self.kind.plural
        return f"{self.verb} {resource}"


def _rights(kind: Kind, verbs: str, subresource: str = "") -> tuple[Right, ...]:
    return tuple(Right(verb, kind, subresource) for verb in verbs.split())


WORKER_RIGHTS = (
    *_rights(LEASE, "get list create update delete"),
    *_rights(POD, "get list watch create delete"),
    *_rights(POD, "get", "log"),
    *_rights(SERVICE, "get list create delete"),
    *_rights(SECRET, "get list create delete"),
    *_rights(EVENT, "list"),
)
"""What running workers as pods needs: Role ``airflow-arcadia`` of ``deploy/rbac.yaml``."""

RAY_CLUSTER_RIGHTS = _rights(RAY_CLUSTER, "get list watch create delete")
"""What Ray clusters made by KubeRay need: Role ``airflow-arcadia-ray``."""

CUSTOM_RESOURCE_RIGHTS = _rights(WORKER, "get list watch create patch delete")
"""What ``launcher="custom_resource"`` needs: Role ``airflow-arcadia-workers``."""


async def missing_rights(session: Session, rights: Iterable[Right]) -> list[Right]:
    """Those of ``rights`` that the credentials do not have.

    Raises :class:`~airflow_arcadia.kubernetes.errors.KubernetesError` when the server cannot be asked.
    """
    asked = list(rights)
    allowed = await asyncio.gather(*(_may(session, right) for right in asked))
    return [right for right, may in zip(asked, allowed, strict=True) if not may]


async def _may(session: Session, right: Right) -> bool:
    attributes = {
        "namespace": session.namespace,
        "verb": right.verb,
        "group": right.kind.group,
        "resource": right.kind.plural,
        "subresource": right.subresource,
    }
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": attributes},
    }
    answer = await session.review(_REVIEW, review)
    return bool(answer["status"]["allowed"])
