"""Settings of a RayCluster that is made for one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

from airflow_arcadia.config import DASHBOARD_PORT, GCS_PORT
from airflow_arcadia.exceptions import ArcadiaConfigError
from airflow_arcadia.validation import Count, Port, PositiveSeconds, Seconds, Variables, parse
from airflow_arcadia.worker import parse_num_gpus


@dataclass(frozen=True)
class KubeRaySpec:
    """What to make; values are Kubernetes' own JSON.

    :param image: the worker's image: Ray, Python and vLLM must be the same on every node. Default: the
        ``image`` of ``pod``, as for the pull policy and secrets, the model volume and where it is mounted,
        the node selector and the tolerations.
    :param image_pull_policy: None takes Kubernetes' own default.
    :param image_pull_secrets: names of Secrets.
    :param num_gpus: GPUs of all nodes; default what the workers ask for.
    :param gpus_per_node: GPUs of each node; default all on one, which is the fastest for tensor parallelism.
    :param ray_version: the image's Ray; default the ``rayVersion`` of the entry of arcadia-config in whose
        place it is made, if any. KubeRay (1.6 and later) probes nodes by HTTP from Ray 2.53 on; where it is
        told no version, by the image's own ``wget``.
    :param resources: further requests and limits of each GPU node; ``nvidia.com/gpu`` is added.
    :param head_resources: requests and limits of the head, which runs no model.
    :param shm_size: most that ``/dev/shm`` of each node may take.
    :param model_volume: volume source of the model's files: every node loads them.
    :param model_mount_path: where the nodes see them, the same as on the worker.
    :param node_selector: labels that the nodes must have.
    :param tolerations: taints of nodes that the pods tolerate.
    :param service_account_name: None takes the namespace's default.
    :param priority_class_name: PriorityClass of the pods.
    :param run_as_user: numeric user of the processes.
    :param port: port of the head's GCS.
    :param dashboard_port: port of Ray's dashboard on the head.
    :param ray_start_params: further parameters of ``ray start`` on the head.
    :param startup_timeout: seconds until all nodes must have joined.
    :param unschedulable_grace: seconds its pods may fit on no node, where an autoscaler adds nodes.
    """

    image: str = ""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    image_pull_secrets: Sequence[str] = ()
    num_gpus: Count | None = None
    gpus_per_node: Count | None = None
    ray_version: str | None = None
    resources: Mapping[str, Any] = field(default_factory=dict)
    head_resources: Mapping[str, Any] = field(
        default_factory=lambda: {"requests": {"cpu": "1", "memory": "4Gi"}, "limits": {"memory": "4Gi"}}
    )
    shm_size: str = "8Gi"
    model_volume: Mapping[str, Any] | None = None
    model_mount_path: str = "/data/models"
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: Sequence[Mapping[str, Any]] = ()
    service_account_name: str | None = None
    priority_class_name: str | None = None
    run_as_user: Count = 1000
    port: Port = GCS_PORT
    dashboard_port: Port = DASHBOARD_PORT
    ray_start_params: Variables = field(default_factory=dict)
    startup_timeout: PositiveSeconds = 900.0
    unschedulable_grace: Seconds = 0.0

    @classmethod
    def parse(cls, raw: object) -> KubeRaySpec:
        """The specification from ``ray_cluster_spec``, a mapping with keys of :class:`KubeRayOptions`.

        Raises :class:`ArcadiaConfigError` naming the key at fault.
        """
        return parse(cls, raw, "ray_cluster_spec")

    def require_image(self) -> None:
        """Raise :class:`ArcadiaConfigError` when there is no image to run."""
        if not self.image:
            raise ArcadiaConfigError(
                "ray_cluster_spec has no image for the Ray cluster's nodes.",
                what_to_do="Set it to the worker's image.",
            )

    def nodes(self, asked: int) -> tuple[int, int]:
        """How many GPU nodes of how many GPUs each, for workers that ask for ``asked`` GPUs.

        Raises :class:`ArcadiaConfigError` when they cannot be divided so.
        """
        total = parse_num_gpus(self.num_gpus or asked)
        each = parse_num_gpus(self.gpus_per_node or total)
        if total % each:
            raise ArcadiaConfigError(
                f"ray_cluster_spec asks for {total} GPUs on nodes of {each}.",
                what_to_do="Make num_gpus a multiple of gpus_per_node.",
            )
        return total // each, each


class KubeRayOptions(TypedDict, total=False):
    """Keys of ``ray_cluster_spec``, with the meaning of :class:`KubeRaySpec`'s fields.

    Every value may be a template; text becomes the declared type. A local head takes ``num_gpus`` and
    ``num_cpus`` alone.
    """

    image: str
    image_pull_policy: str | None
    image_pull_secrets: Sequence[str] | str
    num_gpus: int | str | None
    num_cpus: int | str | None
    gpus_per_node: int | str | None
    ray_version: str | None
    resources: Mapping[str, Any] | str
    head_resources: Mapping[str, Any] | str
    shm_size: str
    model_volume: Mapping[str, Any] | str | None
    model_mount_path: str
    node_selector: Mapping[str, str] | str
    tolerations: Sequence[Mapping[str, Any]] | str
    service_account_name: str | None
    priority_class_name: str | None
    run_as_user: int | str
    port: int | str
    dashboard_port: int | str
    ray_start_params: Mapping[str, str] | str
    startup_timeout: float | str
    unschedulable_grace: float | str
