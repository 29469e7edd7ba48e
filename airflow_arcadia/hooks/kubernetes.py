"""Make the client of a namespace from an Airflow ``kubernetes`` connection."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any

from airflow_arcadia.kubernetes.api import PATIENCE_S, KubernetesApi

DEFAULT_NAMESPACE = "default"
_SERVICE_ACCOUNT_NAMESPACE = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"


def kubernetes_api(
    extras: Mapping[str, Any], namespace: str | None, patience_s: float = PATIENCE_S
) -> KubernetesApi:
    """The namespace named, else the connection's, else the one Airflow itself runs in.

    :param extras: the extras of the ``kubernetes`` connection; clients are made by its own hook.
    """

    def connect() -> AbstractAsyncContextManager[Any]:
        # Imported late: the provider's hook brings both Kubernetes clients with it.
        from airflow.providers.cncf.kubernetes.hooks.kubernetes import AsyncKubernetesHook  # noqa: PLC0415

        opened: AbstractAsyncContextManager[Any] = AsyncKubernetesHook(
            conn_id=None, connection_extras=dict(extras)
        ).get_conn()
        return opened

    return KubernetesApi(connect, namespace or _namespace(extras), patience_s)


def _namespace(extras: Mapping[str, Any]) -> str:
    named = extras.get("namespace") or extras.get("extra__kubernetes__namespace")
    if named:
        return str(named)
    try:
        with open(_SERVICE_ACCOUNT_NAMESPACE, encoding="utf-8") as file:
            return file.read().strip()
    except OSError:
        return DEFAULT_NAMESPACE
