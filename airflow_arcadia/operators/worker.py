"""A worker's life as tasks: reserve its lease, launch it, tear everything down."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowFailException

from airflow_arcadia.exceptions import ArcadiaConfigError, TeardownError
from airflow_arcadia.hooks.arcadia import DEFAULT_CONN_ID, ArcadiaHook, no_retry_where_useless
from airflow_arcadia.launchers.arcadia_worker.from_yaml import read_worker_manifest
from airflow_arcadia.lease import DEFAULT_DURATION_S, Identity, parse_duration
from airflow_arcadia.operators._launcher import launcher_of, model_name, parse_limit
from airflow_arcadia.operators._requirements import optional, require_lease
from airflow_arcadia.operators._scope import failed_first, run_is_failed
from airflow_arcadia.operators.links import WorkerLink
from airflow_arcadia.preflight import require_model
from airflow_arcadia.worker import RayConnection, WorkerSpec, parse_num_gpus

if TYPE_CHECKING:
    from airflow.sdk import Context


class ArcadiaReserveWorkerOperator(BaseOperator):
    """Reserve the owner of everything that comes after: one lease. Starts nothing.

    Made to be a *setup* task: Airflow does not run the teardown of a setup that failed or was killed, so
    a setup must have nothing to lose. Returns the lease's name, equal for every retry of the same run.

    :param group: what the lease is for; with the DAG, the run and the map index it makes its name.
    :param lease_duration: seconds the lease holds without a renewal, 15 s to 7 days. It is renewed every
        third of that while a task of the group runs or waits; a worker outlives all of Airflow for that long.
    :param arcadia_conn_id: connection of type ``arcadia``.
    """

    template_fields: Sequence[str] = ("group", "lease_duration", "arcadia_conn_id")
    ui_color = "#e8f4ea"

    def __init__(
        self,
        *,
        group: str = "worker",
        lease_duration: float | str = DEFAULT_DURATION_S,
        arcadia_conn_id: str = DEFAULT_CONN_ID,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.group = group
        self.lease_duration = lease_duration
        self.arcadia_conn_id = arcadia_conn_id

    def execute(self, context: Context) -> str:
        """Reserve, and return the lease's name."""
        with no_retry_where_useless():
            lease = ArcadiaHook(self.arcadia_conn_id).leases.reserve(
                identity_of(context, self.group), time.time(), parse_duration(self.lease_duration)
            )
        self.log.info("Reserved lease %s for %.0f s at a time.", lease.name, lease.duration_s)
        return lease.name


class ArcadiaLaunchWorkerOperator(BaseOperator):
    """Start a worker that outlives the task; a retry re-attaches to the one it already started.

    Returns the handle (:class:`~airflow_arcadia.worker.WorkerHandle` as a dict) as soon as the worker is
    accepted; :class:`~airflow_arcadia.sensors.worker.ArcadiaModelReadySensor` waits for the model.

    :param lease: name of the lease that owns the worker.
    :param model: path of a model folder, or a repository id the worker's environment can load; for Arcadia's
        Worker the name of its Model, or a reference (``kind``, ``name``, ``namespace``, ``apiGroup``).
    :param ray: what ``ArcadiaProvisionRayClusterOperator`` returned; needed above one GPU.
    :param num_gpus: ``NUMBER_GPUS``: above 1 the tensor parallel size.
    :param served_model_name: name clients use; by default the last part of ``model``.
    :param launcher: ``"pod"``, ``"custom_resource"`` (Arcadia's own Worker) or ``"process"``; by default a
        pod where the connection names a Kubernetes cluster, else a process of this machine.
    :param pod: how the pod is made, fields of :class:`~airflow_arcadia.launchers.pod.settings.PodSettings`.
    :param custom_resource: how Arcadia's Worker is made or taken online, fields of
        :class:`~airflow_arcadia.launchers.arcadia_worker.settings.WorkerResourceSettings`.
    :param port: port a process serves on; 0 takes a free one.
    :param index: number of the worker among several under one lease.
    :param extra_args: words added to vLLM's command line (``EXTRA_ARGS``), as a list or one string.
    :param additional_envs: Arcadia's ``additionalEnvs``: come last and win.
    :param arcadia_conn_id: connection of type ``arcadia``.

    The engine's limits are those of :class:`~airflow_arcadia.worker.WorkerSpec`.
    """

    template_fields: Sequence[str] = (
        "lease",
        "model",
        "ray",
        "num_gpus",
        "served_model_name",
        "launcher",
        "pod",
        "custom_resource",
        "dtype",
        "max_model_len",
        "max_num_seqs",
        "max_num_batched_tokens",
        "extra_args",
        "additional_envs",
        "arcadia_conn_id",
    )
    template_fields_renderers = dict.fromkeys(("ray", "additional_envs", "pod", "custom_resource"), "json")
    operator_extra_links = (WorkerLink(),)
    ui_color = "#dfe9f5"

    def __init__(
        self,
        *,
        lease: str,
        model: str | Mapping[str, Any],
        ray: Mapping[str, Any] | None = None,
        num_gpus: int | str = 1,
        served_model_name: str = "",
        launcher: str | None = None,
        pod: Mapping[str, Any] | None = None,
        custom_resource: Mapping[str, Any] | None = None,
        port: int = 0,
        index: int = 0,
        dtype: str = "auto",
        max_model_len: int | str | None = None,
        max_num_seqs: int | str = 256,
        max_num_batched_tokens: int | str = 8192,
        gpu_memory_utilization: float | None = None,
        trust_remote_code: bool = False,
        extra_args: Sequence[str] | str = (),
        additional_envs: Mapping[str, str] | None = None,
        arcadia_conn_id: str = DEFAULT_CONN_ID,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.lease = lease
        self.model = model
        self.ray = ray
        self.num_gpus = num_gpus
        self.served_model_name = served_model_name
        self.launcher = launcher
        self.pod = pod
        self.custom_resource = custom_resource
        self.port = port
        self.index = index
        self.dtype = dtype
        self.max_model_len = max_model_len
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.gpu_memory_utilization = gpu_memory_utilization
        self.trust_remote_code = trust_remote_code
        self.extra_args = extra_args
        self.additional_envs = additional_envs
        self.arcadia_conn_id = arcadia_conn_id

    def execute(self, context: Context) -> dict[str, Any]:
        """Launch, and return the handle."""
        with no_retry_where_useless():
            require_lease(self.lease)
            hook = ArcadiaHook(self.arcadia_conn_id)
            ray = RayConnection.from_dict(self.ray) if self.ray else None
            chosen = hook.launcher_name(self.launcher)
            spec = self.build_spec(hook, ray, chosen)
            launcher = launcher_of(self, hook, chosen, spec, context)
            if chosen == "process":
                require_model(spec.model, spec.num_gpus)
            lease = hook.leases.update(self.lease, lambda held: held.renew(time.time()))
            handle = launcher.launch(spec, lease, ray=ray)
        self.log.info("Worker %s serves %s at %s: %s", handle.name, spec.model, handle.url, handle.where)
        return handle.to_dict()

    @classmethod
    def from_manifest(cls, path: str | os.PathLike[str], **kwargs: Any) -> ArcadiaLaunchWorkerOperator:
        """The operator that makes the Worker of a manifest as Arcadia's documentation has it.

        :param path: YAML file with one Worker. ``NUMBER_GPUS`` and ``RAY_CLUSTER_INDEX`` are taken from its
            ``additionalEnvs`` (1 and 0 where they are absent); everything else is passed on as it stands.
        :param kwargs: parameters of the operator: they win, and ``custom_resource`` over the manifest's
            settings key by key. Raises :class:`ArcadiaConfigError` naming the key at fault.
        """
        found = read_worker_manifest(path)
        settings = {**found["custom_resource"], **(kwargs.pop("custom_resource", None) or {})}
        given = {**found, **kwargs, "custom_resource": settings}
        if not given.get("model"):
            raise ArcadiaConfigError(
                f"Worker manifest {os.fspath(path)!r} has no spec.model.",
                what_to_do="Add it, or give model to from_manifest.",
            )
        return cls(**given)

    def build_spec(self, hook: ArcadiaHook, ray: RayConnection | None, launcher: str) -> WorkerSpec:
        """The worker's spec. Raises :class:`ArcadiaConfigError` naming the parameter at fault."""
        # Of this machine, and so for a process of it alone: a pod has its own secrets and owner.
        files: dict[str, Any] = {}
        if launcher == "process":
            files = {
                "api_key_file": hook.api_key_file(self.lease),
                "ray_token_file": hook.ray_token_file(self.lease),
                "lease_file": str(hook.store.file(self.lease)),
            }
        envs = {str(key): str(value) for key, value in (self.additional_envs or {}).items()}
        return WorkerSpec(
            name=f"{self.lease}-{self.index}" if self.index else self.lease,
            model=model_name(self.model),
            served_model_name=self.served_model_name or "",
            num_gpus=parse_num_gpus(envs.get("NUMBER_GPUS", self.num_gpus)),
            ray_cluster_index=ray.index if ray else 0,
            ray_address=ray.address if ray else None,
            ray_dashboard_url=ray.dashboard_url if ray else None,
            ray_version=ray.ray_version if ray else None,
            python_version=ray.python_version if ray else None,
            controller_address=hook.config.gateway.controller,
            port=self.port,
            dtype=self.dtype,
            max_model_len=parse_limit("max_model_len", self.max_model_len),
            max_num_seqs=parse_limit("max_num_seqs", self.max_num_seqs) or 256,
            max_num_batched_tokens=parse_limit("max_num_batched_tokens", self.max_num_batched_tokens) or 8192,
            gpu_memory_utilization=self.gpu_memory_utilization,
            trust_remote_code=self.trust_remote_code,
            extra_args=tuple(
                shlex.split(self.extra_args) if isinstance(self.extra_args, str) else self.extra_args
            ),
            additional_envs=envs,
            **files,
        )


class ArcadiaTeardownWorkerOperator(BaseOperator):
    """End everything the lease owns and wait until it is gone. Idempotent.

    Made to be a *teardown* task with ``on_failure_fail_dagrun=True``. That makes it decide the run's
    state, so it fails, after cleaning up, when a task of its scope failed or the run was marked failed
    meanwhile: a failed run must not turn green.

    :param lease: name of the lease.
    :param group: what the lease is for, as in ``ArcadiaReserveWorkerOperator``: finds the lease of a reserve
        task that was marked instead of run, and so returned no name.
    :param grace: seconds a process may take to end before it is killed.
    :param fail_with_scope: whether to fail when a task upstream failed.
    :param arcadia_conn_id: connection of type ``arcadia``.
    """

    template_fields: Sequence[str] = ("lease", "group", "arcadia_conn_id")
    ui_color = "#f5e6df"

    def __init__(
        self,
        *,
        lease: str,
        group: str | None = None,
        grace: float = 30.0,
        fail_with_scope: bool = True,
        arcadia_conn_id: str = DEFAULT_CONN_ID,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.lease = lease
        self.group = group
        self.grace = grace
        self.fail_with_scope = fail_with_scope
        self.arcadia_conn_id = arcadia_conn_id

    def execute(self, context: Context) -> None:
        """Tear down. Raises :class:`TeardownError` when something is still there."""
        with no_retry_where_useless():
            lease = self._lease(context)
            left = ArcadiaHook(self.arcadia_conn_id).end(lease, grace_s=self.grace)
        if left:
            raise TeardownError(
                f"Teardown of lease {lease} could not end everything.",
                still_running=f"Still there: {'; '.join(left)}.",
                what_to_do="Clear this task to try again, or end these by hand.",
            )
        self.log.info("Lease %s and all it owned are gone.", lease)
        if not self.fail_with_scope:
            return
        if failed := failed_first(context, self._upstream_in_order()):
            names = ", ".join(failed)
            raise AirflowFailException(
                f"Cleaned up, and nothing is left running; the run fails because {names} failed."
            )
        if run_is_failed(context):
            raise AirflowFailException(
                "Cleaned up, and nothing is left running; the run fails because it was marked failed."
            )

    def _upstream_in_order(self) -> list[str]:
        """Every task upstream, each after those it depends on."""
        ids = self.get_flat_relative_ids(upstream=True)
        depth = {i: len(self.dag.get_task(i).get_flat_relative_ids(upstream=True)) for i in ids}
        return sorted(ids, key=lambda i: (depth[i], i))

    def _lease(self, context: Context) -> str:
        if optional(self.lease) is None and self.group:
            return identity_of(context, self.group).lease_name
        return require_lease(self.lease)


def identity_of(context: Context, group: str) -> Identity:
    """Whom the lease of that group belongs to in this run."""
    ti = context["ti"]
    return Identity(ti.dag_id, context["run_id"], group, -1 if ti.map_index is None else ti.map_index)
