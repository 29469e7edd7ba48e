"""Settings of a worker's pod."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

from airflow_arcadia.exceptions import ArcadiaConfigError
from airflow_arcadia.validation import Count, Port, PositiveSeconds, Seconds, check_literals, parse
from airflow_arcadia.worker import DEFAULT_FASTCHAT_PORT, DEFAULT_PORT

DEFAULT_WORKER_URL = "http://{service}.{namespace}.svc:{port}"
_SECRET_NAME = re.compile(r"(TOKEN|PASSWORD|SECRET|API_?KEY|CREDENTIALS?|ACCESS_KEY(_ID)?)$", re.IGNORECASE)


@dataclass(frozen=True)
class PodSettings:
    """The pod around a worker.

    Fields have the names of KubernetesPodOperator's parameters where it has them; values are Kubernetes' own
    JSON.

    :param image: image with vLLM and this package (``docker/Dockerfile.worker``); required.
    :param image_pull_policy: None takes Kubernetes' own default.
    :param image_pull_secrets: names of Secrets.
    :param resources: ``requests`` and ``limits`` of the worker's container, passed on exactly as given:
        ``nvidia.com/gpu`` here is GPUs of this pod, which ``NUMBER_GPUS`` (from the Ray cluster) is not.
    :param shm_size: most that ``/dev/shm`` may take; ranks of one node talk through it. It is memory, and
        counts towards the pod's limit.
    :param model_volume: volume source of the model's files, e.g. ``{"persistentVolumeClaim": {"claimName":
        "models"}}``, ``{"hostPath": {"path": …}}``, ``{"emptyDir": {}}`` with a loader, or ``{"image":
        {"reference": …}}``; None where the image holds the model, or vLLM downloads it.
    :param model_mount_path: where the worker and the loader see it.
    :param loader: init container that fills the model volume (``image``, ``command``, ``args``, ``env``, …).
    :param node_selector: labels that the node must have.
    :param tolerations: taints of nodes that the pod tolerates.
    :param affinity: affinity to nodes and pods.
    :param match_expressions: Arcadia's: required node affinity.
    :param service_account_name: None takes the namespace's default.
    :param automount_service_account_token: whether the pod gets a token of the API server: the worker asks
        nothing of Kubernetes.
    :param priority_class_name: PriorityClass of the pod.
    :param queue_name: Kueue LocalQueue the pod waits in.
    :param labels: labels beside those by which the pod is found again.
    :param annotations: annotations of the pod.
    :param active_deadline_seconds: after which the cluster ends the pod whatever Airflow does; None: never.
    :param startup_timeout: seconds the model may take to load before the kubelet ends the pod; not a key of
        ``pod``, but the operator's own parameter.
    :param run_as_user: numeric user of the processes; never 0 unless an overlay says so.
    :param host: address the server binds inside the pod.
    :param port: port of the pod and its Service.
    :param fastchat_port: port at which FastChat's gateway reaches a worker that asks for an API key. It
        serves FastChat's protocol without the key, so a network policy should open it to the gateway alone.
        None: the gateway does not reach such a worker.
    :param worker_url: URL at which Airflow and the controller reach the worker, with the fields
        ``{service}``, ``{namespace}`` and ``{port}``.
    :param unschedulable_grace: seconds a pod may fit on no node before the wait fails; give it where an
        autoscaler adds nodes.
    :param pod_template_dict: pod that ours is laid over.
    :param full_pod_spec: pod that is laid over ours, for everything else.
    """

    image: str = ""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    image_pull_secrets: Sequence[str] = ()
    resources: Mapping[str, Any] = field(default_factory=dict)
    shm_size: str = "8Gi"
    model_volume: Mapping[str, Any] | None = None
    model_mount_path: str = "/data/models"
    loader: Mapping[str, Any] | None = None
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: Sequence[Mapping[str, Any]] = ()
    affinity: Mapping[str, Any] = field(default_factory=dict)
    match_expressions: Sequence[Mapping[str, Any]] = ()
    service_account_name: str | None = None
    automount_service_account_token: bool = False
    priority_class_name: str | None = None
    queue_name: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    active_deadline_seconds: Count | None = 24 * 3600
    startup_timeout: PositiveSeconds = 1800.0
    run_as_user: Count = 1000
    host: str = "0.0.0.0"  # noqa: S104 - the pod's own network; its Service and NetworkPolicies restrict access
    port: Port = DEFAULT_PORT
    fastchat_port: Port | None = DEFAULT_FASTCHAT_PORT
    worker_url: str = DEFAULT_WORKER_URL
    unschedulable_grace: Seconds = 0.0
    pod_template_dict: Mapping[str, Any] | None = None
    full_pod_spec: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.loader and not self.model_volume:
            raise ArcadiaConfigError(
                "The pod has a loader but no model_volume to load into.",
                what_to_do="Set model_volume, e.g. {'emptyDir': {}}.",
            )
        if self.loader and "image" not in self.loader:
            raise ArcadiaConfigError(
                "The pod's loader has no image.", what_to_do="Give the init container's image."
            )
        check_worker_url(self.worker_url)

    @classmethod
    def parse(cls, raw: object, **fields: Any) -> PodSettings:
        """Settings from the parameter ``pod``, a mapping with keys of :class:`PodOptions`.

        :param fields: further fields.

        Raises :class:`ArcadiaConfigError` naming the key at fault.
        """
        _refuse_moved(raw)
        return parse(cls, raw, "pod", names=_KEYS, **fields)

    @classmethod
    def check_literals(cls, raw: object) -> None:
        """Check what is known when the DAG is parsed. Raises as :meth:`parse`."""
        _refuse_moved(raw)
        check_literals(cls, raw, "pod", names=_KEYS)

    def require_image(self) -> None:
        """Raise :class:`ArcadiaConfigError` when there is no image to run."""
        if not self.image:
            raise ArcadiaConfigError(
                "The worker's pod has no image.",
                what_to_do="Set pod={'image': …} to one built from docker/Dockerfile.worker.",
            )


class PodOptions(TypedDict, total=False):
    """Keys of the parameter ``pod``, with the meaning of :class:`PodSettings`' fields.

    Every value may be a template; text becomes the declared type.
    """

    image: str
    image_pull_policy: str | None
    image_pull_secrets: Sequence[str] | str
    resources: Mapping[str, Any] | str
    shm_size: str
    model_volume: Mapping[str, Any] | str | None
    model_mount_path: str
    loader: Mapping[str, Any] | str | None
    node_selector: Mapping[str, str] | str
    tolerations: Sequence[Mapping[str, Any]] | str
    affinity: Mapping[str, Any] | str
    match_expressions: Sequence[Mapping[str, Any]] | str
    service_account_name: str | None
    automount_service_account_token: bool | str
    priority_class_name: str | None
    queue_name: str | None
    labels: Mapping[str, str] | str
    annotations: Mapping[str, str] | str
    active_deadline_seconds: int | str | None
    run_as_user: int | str
    host: str
    port: int | str
    fastchat_port: int | str | None
    worker_url: str
    unschedulable_grace: float | str
    pod_template_dict: Mapping[str, Any] | str | None
    full_pod_spec: Mapping[str, Any] | str | None


_KEYS = {name: name for name in PodOptions.__annotations__}
_MOVED = {
    "startup_timeout": "Give startup_timeout to the group or the operator itself.",
    "drain_seconds": "Give it as engine={'drain_seconds': …}.",
}
"""Keys that a user may look for in ``pod``, but that hold for every launcher."""


def _refuse_moved(raw: object) -> None:
    for key, what_to_do in _MOVED.items():
        if isinstance(raw, Mapping) and key in raw:
            raise ArcadiaConfigError(f"pod has the unknown key {key!r}.", what_to_do=what_to_do)


def check_worker_url(url: str) -> None:
    """Raise :class:`ArcadiaConfigError` for a URL with a field that cannot be filled."""
    try:
        url.format(service="s", namespace="n", port=1)
    except (KeyError, ValueError, IndexError) as error:
        raise ArcadiaConfigError(
            f"worker_url {url!r} has an unknown field: {error}.",
            what_to_do="Use {service}, {namespace} and {port}.",
        ) from error


IN_A_FILE = "into a Secret that full_pod_spec mounts as a file"


def refuse_secrets(envs: Iterable[str], instead: str = IN_A_FILE) -> None:
    """Raise :class:`ArcadiaConfigError` for a variable that looks like a secret in clear.

    Everyone who may read pods can read a pod's plain environment, and vLLM's Ray executor copies it to every
    Ray worker.

    :param envs: names of the variables.
    :param instead: where it may be, as part of a sentence.
    """
    for name in envs:
        if _SECRET_NAME.search(name):
            raise ArcadiaConfigError(
                f"additional_envs has {name}, which looks like a secret, in clear.",
                what_to_do=f"Put it into the connection (API key, hf_token, ray_token), or {instead}.",
            )
