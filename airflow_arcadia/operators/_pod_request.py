"""Let KubernetesPodOperator make the final changes to a worker's pod: overlays, labels, mutation hooks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from airflow_arcadia.exceptions import ArcadiaConfigError
from airflow_arcadia.kubernetes.kinds import Object
from airflow_arcadia.launchers.pod.manifest import CONTAINER
from airflow_arcadia.launchers.pod.settings import PodSettings

if TYPE_CHECKING:
    from airflow.sdk import Context

_FALSE_BY_DEFAULT = ("automountServiceAccountToken", "enableServiceLinks")
"""Fields that are true where they are absent: merging pods loses a false."""


def pod_request(
    settings: PodSettings, context: Context, *, task_id: str, kubernetes_conn_id: str | None
) -> Callable[[Object], Object]:
    """Return the function that makes the request from our manifest.

    Raises :class:`ArcadiaConfigError` for an overlay with a field that pods do not have.
    """
    # Imported late: the provider brings the whole Kubernetes client with it.
    from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator  # noqa: PLC0415
    from airflow.providers.cncf.kubernetes.pod_generator import PodGenerator  # noqa: PLC0415
    from kubernetes.client import ApiClient

    client = ApiClient()
    template = _parsed(client, settings.pod_template_dict, "pod_template_dict")
    overlay = _parsed(client, settings.full_pod_spec, "full_pod_spec")

    def request(pod: Object) -> Object:
        ours = PodGenerator.deserialize_model_dict(pod)
        base = PodGenerator.reconcile_pods(template, ours) if template else ours
        operator = KubernetesPodOperator(
            task_id=task_id,
            kubernetes_conn_id=kubernetes_conn_id,
            name=pod["metadata"]["name"],
            random_name_suffix=False,
            base_container_name=CONTAINER,
            pod_template_dict=client.sanitize_for_serialization(base),
            full_pod_spec=overlay,
            service_account_name=settings.service_account_name,
        )
        built: Object = client.sanitize_for_serialization(operator.build_pod_request_obj(context))
        for key in _FALSE_BY_DEFAULT:
            if key in pod["spec"]:
                built["spec"].setdefault(key, pod["spec"][key])
        if restart := ((settings.full_pod_spec or {}).get("spec") or {}).get("restartPolicy"):
            built["spec"]["restartPolicy"] = restart  # the operator's own pods never restart
        # An overlay must not change how the pod is found again, nor what its garbage collection depends on.
        built["metadata"]["labels"] |= pod["metadata"]["labels"]
        for key in ("name", "ownerReferences"):
            built["metadata"][key] = pod["metadata"][key]
        built["metadata"].pop("namespace", None)
        return built

    return request


def _parsed(client: Any, raw: Mapping[str, Any] | None, name: str) -> Any:
    """The overlay as the client's model. Unknown fields are an error: the model would drop them silently."""
    if not raw:
        return None
    from airflow.providers.cncf.kubernetes.pod_generator import PodGenerator  # noqa: PLC0415

    document = dict(raw)
    if isinstance(document.get("spec"), Mapping):
        # An overlay need not speak of containers; the client's model does.
        document["spec"] = {"containers": [], **document["spec"]}
    try:
        parsed = PodGenerator.deserialize_model_dict(document)
    except (ValueError, TypeError, AttributeError) as error:
        raise ArcadiaConfigError(
            f"{name} is not a valid pod: {error}.", what_to_do="Write it in Kubernetes' own JSON."
        ) from error
    if lost := _lost(raw, client.sanitize_for_serialization(parsed), name):
        raise ArcadiaConfigError(
            f"{lost} is not a field of a pod.", what_to_do="Write it in Kubernetes' own JSON."
        )
    return parsed


def _lost(raw: Any, kept: Any, path: str) -> str | None:
    """Path of the first value that did not survive."""
    if isinstance(raw, Mapping):
        for key, value in raw.items():
            if not isinstance(kept, Mapping) or (key not in kept and value not in (None, {}, [])):
                return f"{path}.{key}"
            if key in kept and (found := _lost(value, kept[key], f"{path}.{key}")):
                return found
    elif isinstance(raw, list) and isinstance(kept, list):
        for index, (one, other) in enumerate(zip(raw, kept, strict=False)):
            if found := _lost(one, other, f"{path}[{index}]"):
                return found
    return None
