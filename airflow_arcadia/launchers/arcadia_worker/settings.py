"""Settings of an Arcadia Worker resource."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypedDict

from airflow_arcadia.exceptions import ArcadiaConfigError
from airflow_arcadia.launchers.pod.settings import (
    DEFAULT_WORKER_URL,
    check_worker_url,
    refuse_secrets,
)
from airflow_arcadia.validation import Index, Seconds, check_literals, parse

VLLM = "fastchat-vllm"
"""The one type that Arcadia runs over Ray, and the one whose protocol our image speaks."""
DELETE, OFFLINE = "delete", "offline"
GPUS, INDEX = "NUMBER_GPUS", "RAY_CLUSTER_INDEX"
_OF_THE_RUN = ("name", "namespace", "existing", "teardown", "worker_url", "unschedulable_grace")
"""Settings that say how a Worker is used; the others say how it is made."""
_ARCADIAS_RUNNERS = ("arcadia-fastchat-worker", "arcadia-fastchat")
SECRETS_INSTEAD = "name a Secret by valueFrom in custom_resource's additional_envs"


@dataclass(frozen=True)
class WorkerResourceSettings:
    """Arcadia's Worker: which one, and what its ``spec`` says. Values are Kubernetes' own JSON.

    :param name: the Worker's name; default the lease's, which no other run has.
    :param namespace: namespace a manifest names; must be the connection's.
    :param existing: the Worker ``name`` is there: it is taken online (``replicas`` 0 → 1), offline again at
        the teardown, and is otherwise left as it is. One that is online already stays online.
    :param teardown: ``"delete"`` (the default), or ``"offline"``: the Worker is kept with ``replicas`` 0 and
        its uid, and the next run takes it online again. Needs ``name``.
    :param type: ``fastchat-vllm``; Arcadia's other types answer no batch.
    :param model: reference to Arcadia's Model (``kind``, ``name``, ``namespace``, ``apiGroup``); default the
        Model named by the operator's ``model`` in the Worker's namespace.
    :param ray_cluster_index: index into the operator's own arcadia-config; default that of the Ray cluster
        which was provisioned, else 0.
    :param resources: ``requests`` and ``limits``, passed on exactly as given. There is no default for the
        limits: Arcadia's operator fails without any, and what a model needs cannot be guessed.
    :param match_expressions: required node affinity.
    :param additional_envs: variables as a pod has them (``valueFrom`` too); the operator's own
        ``additional_envs`` come after these and win.
    :param storage: PersistentVolumeClaim spec for the model's files; None takes an emptyDir.
    :param loader: ``image`` and ``imagePullPolicy`` of what fetches the model; None takes Arcadia's.
    :param runner: ``image`` and ``imagePullPolicy``. Batches, and the engine's limits, need an image built
        from ``docker/Dockerfile.worker``: Arcadia's own speaks FastChat's protocol only.
    :param creator: who made it, for Arcadia's portal.
    :param display_name: name in Arcadia's portal.
    :param description: text in Arcadia's portal.
    :param labels: labels beside those by which it is found again.
    :param annotations: annotations of the Worker.
    :param worker_url: URL at which Airflow reaches the worker, with the fields ``{service}``,
        ``{namespace}`` and ``{port}``.
    :param unschedulable_grace: seconds its pod may fit on no node before the wait fails.
    """

    name: str | None = None
    namespace: str | None = None
    existing: bool = False
    teardown: str | None = None
    type: str = VLLM
    model: Mapping[str, Any] | None = None
    ray_cluster_index: Index | None = None
    resources: Mapping[str, Any] = field(default_factory=dict)
    match_expressions: Sequence[Mapping[str, Any]] = ()
    additional_envs: Sequence[Mapping[str, Any]] = ()
    storage: Mapping[str, Any] | None = None
    loader: Mapping[str, Any] | None = None
    runner: Mapping[str, Any] | None = None
    creator: str | None = None
    display_name: str | None = None
    description: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    worker_url: str = DEFAULT_WORKER_URL
    unschedulable_grace: Seconds = 0.0

    def __post_init__(self) -> None:
        check_worker_url(self.worker_url)
        _check_use(self)
        if self.type != VLLM:
            raise ArcadiaConfigError(
                f"custom_resource's type is {self.type!r}.",
                what_to_do=f"Use {VLLM!r}: Arcadia's other types neither use Ray nor answer a batch.",
            )
        for item in self.additional_envs:
            if not isinstance(item, Mapping) or not item.get("name"):
                raise ArcadiaConfigError(
                    f"custom_resource's additional_envs has {item!r}.",
                    what_to_do="Write each as a mapping with name and value, or name and valueFrom.",
                )
            if item["name"] in {GPUS, INDEX}:
                instead = "num_gpus" if item["name"] == GPUS else "ray_cluster_index of custom_resource"
                raise ArcadiaConfigError(
                    f"custom_resource's additional_envs has {item['name']}.",
                    what_to_do=f"Give it as {instead}: it is always written.",
                )
        refuse_secrets(
            [str(item["name"]) for item in self.additional_envs if "value" in item], SECRETS_INSTEAD
        )

    @classmethod
    def parse(cls, raw: object) -> WorkerResourceSettings:
        """Settings from ``custom_resource``, a mapping with keys of :class:`ArcadiaWorkerOptions`.

        Raises :class:`ArcadiaConfigError` naming the key at fault.
        """
        return parse(cls, raw, "custom_resource")

    @classmethod
    def check_literals(cls, raw: object) -> None:
        """Check what is known when the DAG is parsed. Raises as :meth:`parse`."""
        check_literals(cls, raw, "custom_resource")

    @property
    def kept(self) -> bool:
        """Whether the Worker outlives the run."""
        return self.existing or self.teardown == OFFLINE

    @property
    def own_image(self) -> bool:
        """Whether the runner is an image of ours: Arcadia's own knows Arcadia's variables only."""
        return not is_arcadias_runner((self.runner or {}).get("image"))


class ArcadiaWorkerOptions(TypedDict, total=False):
    """Keys of ``custom_resource``, with the meaning of :class:`WorkerResourceSettings`' fields.

    Every value may be a template; text becomes the declared type.
    """

    name: str | None
    namespace: str | None
    existing: bool | str
    teardown: str | None
    type: str
    model: Mapping[str, Any] | str | None
    ray_cluster_index: int | str | None
    resources: Mapping[str, Any] | str
    match_expressions: Sequence[Mapping[str, Any]] | str
    additional_envs: Sequence[Mapping[str, Any]] | str
    storage: Mapping[str, Any] | str | None
    loader: Mapping[str, Any] | str | None
    runner: Mapping[str, Any] | str | None
    creator: str | None
    display_name: str | None
    description: str | None
    labels: Mapping[str, str] | str
    annotations: Mapping[str, str] | str
    worker_url: str
    unschedulable_grace: float | str


def is_arcadias_runner(image: object) -> bool:
    """Whether that runner image, or none, means Arcadia's own, wherever it is mirrored."""
    repository = str(image or "").partition("@")[0].rpartition("/")[2].partition(":")[0]
    return repository in {"", *_ARCADIAS_RUNNERS}


def parse_index(value: object) -> int:
    """``RAY_CLUSTER_INDEX`` as a whole number. Raises :class:`ArcadiaConfigError` for anything else."""
    text = str(value).strip()
    if isinstance(value, bool) or not text.isdecimal():
        raise ArcadiaConfigError(
            f"{INDEX} is {value!r}.", what_to_do="Set it to a whole number, 0 or more: Arcadia would take 0."
        )
    return int(text)


def _check_use(settings: WorkerResourceSettings) -> None:
    if settings.teardown not in {None, DELETE, OFFLINE}:
        raise ArcadiaConfigError(
            f"custom_resource's teardown is {settings.teardown!r}.",
            what_to_do=f"Use {DELETE!r} or {OFFLINE!r}.",
        )
    if settings.kept and not settings.name:
        why = "takes a Worker that is there" if settings.existing else "keeps the Worker for the next run"
        raise ArcadiaConfigError(
            f"custom_resource {why}, but has no name.", what_to_do="Set name: the Worker is found by it."
        )
    if not settings.existing:
        return
    if settings.teardown == DELETE:
        raise ArcadiaConfigError(
            f"custom_resource would delete Worker {settings.name}, which was there before.",
            what_to_do=f"Leave teardown out: an existing Worker is only taken offline ({OFFLINE!r}).",
        )
    for item in fields(settings):
        value = getattr(settings, item.name)
        # A reference to the model changes nothing: it is compared with the Worker's.
        if item.name not in {*_OF_THE_RUN, "model", "type"} and value not in (None, (), [], {}):
            raise ArcadiaConfigError(
                f"custom_resource has {item.name}, but Worker {settings.name} exists and is left as it is.",
                what_to_do=f"Leave {item.name} out, or change the Worker itself.",
            )
