"""Turn the API server's refusals into errors of this provider's family."""

from __future__ import annotations

import json
import re

from airflow_arcadia.exceptions import ArcadiaConfigError, ArcadiaError
from airflow_arcadia.kubernetes.kinds import Kind

VERBS = {"GET": "get", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


class KubernetesError(ArcadiaError):
    """The cluster did not do what it was asked.

    :ivar status: HTTP status; 0 when nothing was answered.
    """

    status = 0


class KubernetesUnreachableError(KubernetesError):
    """The API server cannot be reached, or cannot answer now: nothing is known, and nothing is "absent"."""


class KubernetesAbsentError(KubernetesError):
    """The server says that there is no such object."""

    status = 404


class KubernetesConflictError(KubernetesError):
    """The object is there already, or was changed by another writer meanwhile."""

    status = 409


class KubernetesExpiredError(KubernetesError):
    """The watch's resource version is too old: list again."""

    status = 410


class KubernetesForbiddenError(KubernetesError):
    """The credentials may not do this; the message names the verb and the resource."""

    retryable = False
    status = 403


class KubernetesQuotaError(KubernetesError):
    """A ResourceQuota is used up: it may be free again later."""

    status = 403


class KubernetesInvalidError(ArcadiaConfigError, KubernetesError):
    """The API server refuses the object as written."""

    retryable = False
    status = 422


def unreachable(why: object) -> KubernetesUnreachableError:
    """The error for an API server that is away."""
    return KubernetesUnreachableError(
        f"The Kubernetes API cannot be reached: {why or 'no answer'}.",
        still_running="What was started before goes on without it.",
        what_to_do="Check the kubernetes connection and the cluster; Airflow tries again by itself.",
    )


def refused(  # noqa: PLR0917 - an answer, and what had been asked
    status: int, body: str, verb: str, kind: Kind, namespace: str, name: str | None = None
) -> KubernetesError:
    """The error for a refusal by the API server.

    :param verb: as RBAC names it: ``get``, ``list``, ``watch``, ``create``, …
    """
    message = _message(body)
    what = f"{verb} {kind.plural} in namespace {namespace}"
    if status == 401:
        denied = KubernetesForbiddenError(
            f"The Kubernetes API does not accept the credentials: {message}",
            what_to_do="Renew the token or kubeconfig of the kubernetes connection.",
        )
        denied.status = 401
        return denied
    if status == 403:
        return _not_allowed(message, verb, kind, namespace)
    # A kind or a namespace that does not exist is a 404 as well, but of another name, or of none.
    if status == 404 and name and f'"{name}" not found' in message:
        return KubernetesAbsentError(f"Kubernetes: {what}: {message}", what_to_do="Create it.")
    if known := _KINDS.get(status):
        error, what_to_do = known
        return error(f"The API server refuses to {what}: {message}", what_to_do=what_to_do)
    away = unreachable(f"{what} answered HTTP {status}: {message}")
    away.status = status
    return away


_INVALID = (KubernetesInvalidError, "Correct the field it names.")
_KINDS: dict[int, tuple[type[KubernetesError], str]] = {
    404: (KubernetesInvalidError, "Create the namespace, or install the operator that serves this kind."),
    409: (KubernetesConflictError, "Try again; something else made or changed it meanwhile."),
    410: (KubernetesExpiredError, "List again."),
    400: _INVALID,
    413: _INVALID,
    415: _INVALID,
    422: _INVALID,
}
"""By HTTP status: the error and what to do."""


def _not_allowed(message: str, verb: str, kind: Kind, namespace: str) -> KubernetesError:
    if "exceeded quota" in message:
        return KubernetesQuotaError(
            f"The quota of namespace {namespace} is used up: {message}",
            what_to_do="Wait until other pods end, or raise the ResourceQuota.",
        )
    if "not yet ready to handle request" in message:
        # Admission of a server that has just started and has not read what it decides by.
        return unreachable(f"{verb} {kind.plural} answered HTTP 403: {message}")
    # RBAC names the user who may not; what else is forbidden is refused for what it is, by admission.
    if not re.search(r"\bcannot \w+ resource\b", message):
        return KubernetesInvalidError(
            f"The API server's admission refuses to {verb} {kind.plural} in namespace {namespace}: {message}",
            what_to_do="Correct what it names, or make it in the cluster first.",
        )
    group = f' of API group "{kind.group}"' if kind.group else ""
    return KubernetesForbiddenError(
        f"Airflow may not {verb} {kind.plural}{group} in namespace {namespace}: {message}",
        what_to_do=f"Add the verb {verb!r} on {kind.plural!r} to its Role (see deploy/rbac.yaml).",
    )


def _message(body: str) -> str:
    """The Status object's own words, or whatever else was answered, as a sentence."""
    try:
        text = str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        text = body
    text = text.strip() or "no reason given"
    return text if text.endswith(".") else f"{text}."
