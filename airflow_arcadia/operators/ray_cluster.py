"""Provide a connection to a Ray cluster that is proven usable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator

from airflow_arcadia.exceptions import ArcadiaConfigError
from airflow_arcadia.hooks.arcadia import DEFAULT_CONN_ID, ArcadiaHook, fail_without_retry
from airflow_arcadia.launchers.pod.settings import PodOptions, PodSettings
from airflow_arcadia.operators._requirements import require_lease
from airflow_arcadia.operators._warm import warm_turn
from airflow_arcadia.preflight import require_model
from airflow_arcadia.ray_cluster.kuberay.settings import KubeRayOptions, KubeRaySpec
from airflow_arcadia.ray_cluster.local import LocalHeadSpec
from airflow_arcadia.ray_cluster.provision import CREATE, provision
from airflow_arcadia.validation import Count, check_literals, is_rendered_later, mapping, parse
from airflow_arcadia.worker import parse_num_gpus

if TYPE_CHECKING:
    from airflow.sdk import Context

_LIKE_THE_POD = (
    "image",
    "image_pull_policy",
    "image_pull_secrets",
    "model_volume",
    "model_mount_path",
    "node_selector",
    "tolerations",
)
"""Settings of a RayCluster that default to the workers' pod's."""
BUSY_WAIT_S = 15.0
"""Longer than Ray counts the GPUs of a worker that has just ended as used."""


@dataclass(frozen=True)
class _ProvisionParameters:
    """What is validated when the DAG is parsed."""

    num_workers: Count


class ArcadiaProvisionRayClusterOperator(BaseOperator):
    """Resolve a Ray cluster of arcadia-config and prove that the worker can be placed on it.

    Health, authentication, Ray and Python versions and free GPUs are read from the cluster's REST API
    before anything starts. Returns the connection (:class:`~airflow_arcadia.worker.RayConnection` as a
    dict), or None for one GPU: such a worker needs no Ray.

    :param lease: name of the lease to record under (what ``ArcadiaReserveWorkerOperator`` returned).
    :param ray_cluster: index (``RAY_CLUSTER_INDEX``), name, or ``"auto"`` for one with enough free GPUs.
    :param num_gpus: ``NUMBER_GPUS`` each worker will take.
    :param num_workers: how many workers will be placed on it.
    :param model: where given and a folder of this machine, its ``config.json`` is checked against
        ``num_gpus`` first.
    :param create: ``"if_missing"`` makes one for this run: where the connection names a Kubernetes cluster, a
        RayCluster by KubeRay when arcadia-config lists none, none answers, or ``"auto"`` finds none with
        enough free GPUs; else a local head where nothing answers at a loopback address.
    :param ray_cluster_spec: what to make: keys of
        :class:`~airflow_arcadia.ray_cluster.kuberay.settings.KubeRayOptions`, of which a local head takes
        ``num_gpus`` (logical GPUs) and ``num_cpus``.
    :param pod: how the workers' pods are made: ``ray_cluster_spec`` defaults to its image, model volume,
        tolerations and node selector, which must be the same on every node.
    :param arcadia_conn_id: connection of type ``arcadia``.
    """

    template_fields: Sequence[str] = (
        "lease",
        "ray_cluster",
        "num_gpus",
        "model",
        "create",
        "ray_cluster_spec",
        "pod",
        "arcadia_conn_id",
    )
    template_fields_renderers = {"ray_cluster_spec": "json", "pod": "json"}
    ui_color = "#dfe9f5"

    def __init__(
        self,
        *,
        lease: str,
        ray_cluster: int | str = 0,
        num_gpus: int | str = 1,
        num_workers: int = 1,
        model: str | None = None,
        create: str = "never",
        ray_cluster_spec: KubeRayOptions | None = None,
        pod: PodOptions | None = None,
        arcadia_conn_id: str = DEFAULT_CONN_ID,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.lease = lease
        self.ray_cluster = ray_cluster
        self.num_gpus = num_gpus
        self.num_workers = parse(_ProvisionParameters, {"num_workers": num_workers}, "").num_workers
        self.model = model
        self.create = create
        self.ray_cluster_spec = ray_cluster_spec
        self.pod = pod
        self.arcadia_conn_id = arcadia_conn_id
        self._check_literals()

    def execute(self, context: Context) -> dict[str, Any] | None:
        """Provision, and return the connection."""
        with fail_without_retry():
            owner = require_lease(self.lease)
            num_gpus = parse_num_gpus(self.num_gpus)
            hook = ArcadiaHook(self.arcadia_conn_id)
            if (turn := warm_turn(hook, owner, self.log)) is not None:
                if not turn.launch:
                    # Its GPUs are in use: by the very worker that this run shares.
                    self.log.info("The worker of lease %s is there already.", turn.lease.name)
                    return turn.ray.to_dict() if turn.ray else None
                owner = turn.lease.name  # a Ray cluster that is made here stays with the worker
            if self.model and not hook.kubernetes_conn_id:
                # A pod's path is a folder of its own volume, which only the pod can read.
                require_model(self.model, num_gpus)
            if num_gpus == 1:
                self.log.info("NUMBER_GPUS is 1: the worker uses its own GPU, no Ray cluster is needed.")
                return None
            connection = provision(
                hook.config,
                self.ray_cluster,
                num_gpus * self.num_workers,
                lease=owner,
                backend=hook.ray_backend(owner),
                create=self.create,
                ray_cluster_spec=self.spec_for(in_cluster=hook.kubernetes_conn_id is not None),
                busy_wait_s=BUSY_WAIT_S,
            )
        self.log.info(
            "Ray cluster %s at %s: Ray %s, Python %s, %g of %g GPUs free.",
            connection.name,
            connection.address,
            connection.ray_version,
            connection.python_version,
            connection.gpus_free,
            connection.gpus_total,
        )
        return connection.to_dict()

    def spec_for(self, *, in_cluster: bool) -> dict[str, Any]:
        """``ray_cluster_spec``, with what it leaves out taken from the pod where there are pods."""
        given = mapping(self.ray_cluster_spec, "ray_cluster_spec")
        pod = mapping(self.pod, "pod") if in_cluster else {}
        return {**{key: pod[key] for key in _LIKE_THE_POD if key in pod}, **given}

    def _check_literals(self) -> None:
        if not is_rendered_later(self.num_gpus):
            parse_num_gpus(self.num_gpus)
        if not is_rendered_later(self.create) and self.create not in CREATE:
            raise ArcadiaConfigError(
                f"create is {self.create!r}.", what_to_do=f"Use one of {', '.join(map(repr, CREATE))}."
            )
        spec: Any = self.ray_cluster_spec
        # Where it will be made, only the connection says: a head takes a part of what a RayCluster does.
        is_of_a_head = isinstance(spec, Mapping) and "num_cpus" in spec
        check_literals(LocalHeadSpec if is_of_a_head else KubeRaySpec, spec, "ray_cluster_spec")
        PodSettings.check_literals(self.pod)
