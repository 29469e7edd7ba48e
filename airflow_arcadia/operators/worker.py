"""Operators that reserve a worker's lease, launch the worker, and tear everything down."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypedDict

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowFailException

from airflow_arcadia.exceptions import ArcadiaConfigError, ArcadiaError, TeardownError
from airflow_arcadia.hooks.arcadia import DEFAULT_CONN_ID, ArcadiaHook, fail_without_retry
from airflow_arcadia.launchers.arcadia_worker.from_yaml import read_worker_manifest
from airflow_arcadia.launchers.arcadia_worker.settings import ArcadiaWorkerOptions
from airflow_arcadia.launchers.pod.settings import PodOptions
from airflow_arcadia.lease import DEFAULT_DURATION_S, Identity, parse_duration
from airflow_arcadia.listeners.runs import RESERVE
from airflow_arcadia.operators._launcher import LaunchRequest, launcher_of
from airflow_arcadia.operators._requirements import optional, require_lease
from airflow_arcadia.operators._scope import FAILED, SUCCESS, failed_first, run_is_failed, run_marked
from airflow_arcadia.operators._warm import check_keep_warm, warm_request, warm_turn
from airflow_arcadia.preflight import require_model
from airflow_arcadia.ray_cluster.kuberay.settings import KubeRayOptions
from airflow_arcadia.validation import Seconds, is_rendered_later, parse
from airflow_arcadia.warm import KeepWarm, parse_keep_warm
from airflow_arcadia.worker import DEFAULT_STARTUP_TIMEOUT_S, EngineOptions, RayConnection

if TYPE_CHECKING:
    from airflow.sdk import Context


class WarmWorkerParameters(TypedDict, total=False):
    """What a warm worker is made from: runs for which all of this is equal share one.

    The keys are parameters of ``ArcadiaProvisionRayClusterOperator`` and ``ArcadiaLaunchWorkerOperator``, and
    mean the same. Every value may be a template.
    """

    model: str | Mapping[str, Any]
    num_gpus: int | str
    num_workers: int | str
    ray_cluster: int | str
    create: str
    ray_cluster_spec: KubeRayOptions | None
    served_model_name: str
    launcher: str | None
    engine: EngineOptions | None
    pod: PodOptions | None
    custom_resource: ArcadiaWorkerOptions | None
    port: int | str
    startup_timeout: float | str
    storage_conn_id: str | None
    additional_envs: Mapping[str, str] | None


class ArcadiaReserveWorkerOperator(BaseOperator):
    """Reserve the owner of everything that comes after: one lease. Starts nothing.

    Made to be a *setup* task: Airflow does not run the teardown of a setup that failed or was killed, so
    a setup must have nothing to lose. Returns the lease's name, equal for every retry of the same run.

    :param group: what the lease is for; with the DAG, the run and the map index it makes its name.
    :param lease_duration: seconds the lease holds without a renewal, 15 s to 7 days. It is renewed every
        third of that while a task of the group runs or waits; a worker outlives all of Airflow for that long.
    :param keep_warm: how long the worker stays for other runs after the last one that used it: ``"30m"``,
        seconds or a timedelta, 15 s to 24 h. A run finds it by an equal ``worker`` and connection.
    :param worker: with ``keep_warm``, all that the worker is made from: the parameters that
        ``ArcadiaProvisionRayClusterOperator`` and ``ArcadiaLaunchWorkerOperator`` get, keys of
        :class:`WarmWorkerParameters`.
    :param arcadia_conn_id: connection of type ``arcadia``.
    """

    template_fields: Sequence[str] = ("group", "lease_duration", "keep_warm", "worker", "arcadia_conn_id")
    template_fields_renderers = {"worker": "json"}
    ui_color = "#e8f4ea"

    def __init__(
        self,
        *,
        group: str = "worker",
        lease_duration: float | str = DEFAULT_DURATION_S,
        keep_warm: KeepWarm = None,
        worker: WarmWorkerParameters | None = None,
        arcadia_conn_id: str = DEFAULT_CONN_ID,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.group = group
        self.lease_duration = lease_duration
        self.keep_warm = keep_warm
        self.worker = worker
        self.arcadia_conn_id = arcadia_conn_id
        if not is_rendered_later(lease_duration):
            parse_duration(lease_duration)
        check_keep_warm(keep_warm, worker)

    def execute(self, context: Context) -> str:
        """Reserve, claim a warm worker where one is asked for, and return the lease's name."""
        with fail_without_retry():
            keep_s = parse_keep_warm(self.keep_warm)
            hook = ArcadiaHook(self.arcadia_conn_id)
            request = warm_request(hook, self.worker) if keep_s else None
            lease = hook.leases.reserve(
                identity_of(context, self.group), time.time(), parse_duration(self.lease_duration)
            )
            if request is not None:
                hook.warm_workers.claim(lease, request, keep_s)
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
    :param engine: the engine's options, keys of :class:`~airflow_arcadia.worker.EngineOptions`, e.g.
        ``{"max_num_seqs": 128, "extra_args": "--seed 1"}``.
    :param pod: how the pod is made, keys of :class:`~airflow_arcadia.launchers.pod.settings.PodOptions`.
    :param custom_resource: how Arcadia's Worker is made or taken online, keys of
        :class:`~airflow_arcadia.launchers.arcadia_worker.settings.ArcadiaWorkerOptions`.
    :param port: port a process serves on; 0 takes a free one. A pod has its own in ``pod``.
    :param index: number of the worker among several under one lease.
    :param startup_timeout: seconds a pod's model may take to load before the kubelet ends the pod.
    :param additional_envs: Arcadia's ``additionalEnvs``: come last and win.
    :param storage_conn_id: connection to S3 (``aws``), Google Cloud Storage or Azure, which the worker gets
        as a secret for batches that it runs itself (``run_in="worker"``).
    :param arcadia_conn_id: connection of type ``arcadia``.

    Literal values are validated when the DAG is parsed, templates when the task runs, before anything starts.
    """

    template_fields: Sequence[str] = (
        "lease",
        "model",
        "ray",
        "num_gpus",
        "served_model_name",
        "launcher",
        "engine",
        "pod",
        "custom_resource",
        "port",
        "startup_timeout",
        "additional_envs",
        "storage_conn_id",
        "arcadia_conn_id",
    )
    template_fields_renderers = dict.fromkeys(
        ("ray", "engine", "additional_envs", "pod", "custom_resource"), "json"
    )
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
        engine: EngineOptions | None = None,
        pod: PodOptions | None = None,
        custom_resource: ArcadiaWorkerOptions | None = None,
        port: int | str = 0,
        index: int = 0,
        startup_timeout: float | str = DEFAULT_STARTUP_TIMEOUT_S,
        additional_envs: Mapping[str, str] | None = None,
        storage_conn_id: str | None = None,
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
        self.engine = engine
        self.pod = pod
        self.custom_resource = custom_resource
        self.port = port
        self.index = index
        self.startup_timeout = startup_timeout
        self.additional_envs = additional_envs
        self.storage_conn_id = storage_conn_id
        self.arcadia_conn_id = arcadia_conn_id
        LaunchRequest.check_literals(self)

    def execute(self, context: Context) -> dict[str, Any]:
        """Launch, and return the handle."""
        with fail_without_retry():
            require_lease(self.lease)
            request = LaunchRequest.of(self)
            hook = ArcadiaHook(self.arcadia_conn_id)
            turn = warm_turn(hook, request.lease, self.log)
            if turn is not None:
                request = request.under(turn.lease.name, keep_s=turn.keep_s)
                if (shared := turn.handle(request.name)) is not None and not turn.launch:
                    self.log.info("Worker %s, which other runs share, serves at %s.", shared.name, shared.url)
                    return replace(shared, run_lease=self.lease).to_dict()
            ray = RayConnection.from_dict(request.ray) if request.ray else None
            spec = request.worker_spec(
                ray,
                controller_address=hook.config.gateway.controller,
                drain_seconds=hook.launcher_type(request.launcher).drain_seconds,
            )
            launcher = launcher_of(request, spec, hook, context, task_id=self.task_id)
            if launcher.on_this_machine:
                require_model(spec.model, spec.num_gpus)
            lease = hook.leases.update(request.lease, lambda held: held.renew(time.time()))
            handle = launcher.launch(spec, lease, ray=ray)
            if turn is not None:
                hook.warm_workers.record(handle)
                handle = replace(handle, run_lease=self.lease)
        self.log.info("Worker %s serves %s at %s: %s", handle.name, spec.model, handle.url, handle.where)
        return handle.to_dict()

    @classmethod
    def from_manifest(cls, path: str | os.PathLike[str], **kwargs: Any) -> ArcadiaLaunchWorkerOperator:
        """The operator that makes the Worker of a manifest as Arcadia's documentation has it.

        :param path: YAML file with one Worker; other resources in it are left alone. ``NUMBER_GPUS`` and
            ``RAY_CLUSTER_INDEX`` are taken from its ``additionalEnvs`` (1 and 0 where they are absent);
            everything else is passed on as it stands.
        :param kwargs: parameters of the operator: they win, and ``custom_resource`` over the manifest's
            settings key by key. Raises :class:`ArcadiaConfigError` naming the key at fault.
        """
        given = {**read_worker_manifest(path, kwargs.pop("custom_resource", None)), **kwargs}
        if not given.get("model"):
            raise ArcadiaConfigError(
                f"Worker manifest {os.fspath(path)!r} has no spec.model.",
                what_to_do="Add it, or give model to from_manifest.",
            )
        return cls(**given)


@dataclass(frozen=True)
class _TeardownParameters:
    """What is validated when the DAG is parsed."""

    grace: Seconds


class ArcadiaTeardownWorkerOperator(BaseOperator):
    """End everything the lease owns and wait until it is gone. Idempotent.

    Made to be a *teardown* task with ``on_failure_fail_dagrun=True``. That makes it decide the run's
    state, so it fails, after cleaning up, when a task of its scope failed or the run failed
    meanwhile (``dagrun_timeout``): a failed run must not turn green. A state that a user marked the run
    as before the teardown ended wins over both.

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
        self.grace = parse(_TeardownParameters, {"grace": grace}, "").grace
        self.fail_with_scope = fail_with_scope
        self.arcadia_conn_id = arcadia_conn_id
        self._begun = False

    def execute(self, context: Context) -> None:
        """Tear down. Raises :class:`TeardownError` when something is still there."""
        self._begun = True
        with fail_without_retry():
            lease = self._lease(context)
            left = ArcadiaHook(self.arcadia_conn_id).end(lease, grace_s=self.grace)
        if left:
            raise TeardownError(
                f"Teardown of lease {lease} could not end everything.",
                still_running=f"Still there: {'; '.join(left)}.",
                what_to_do="Clear this task for another attempt, or end these by hand.",
            )
        self.log.info("Lease %s and all it owned are gone.", lease)
        if not self.fail_with_scope:
            return
        marked = run_marked(context, self._reserves())
        if marked == SUCCESS:
            self.log.info("The run was marked successful: it is not failed because of its tasks.")
            return
        if marked == FAILED:
            raise AirflowFailException("Cleaned up, and nothing is left running; the run was marked failed.")
        if failed := failed_first(context, self._upstream_in_order()):
            names = ", ".join(failed)
            raise AirflowFailException(
                f"Cleaned up, and nothing is left running; the run fails because {names} failed."
            )
        if run_is_failed(context):
            raise AirflowFailException(
                "Cleaned up, and nothing is left running; the run had failed meanwhile."
            )

    def on_kill(self) -> None:
        """Release the lease, unless that is done: whoever watches it ends the worker."""
        if not self._begun and (lease := optional(self.lease)) is not None:
            try:
                ArcadiaHook(self.arcadia_conn_id).leases.update(lease, lambda held: held.release())
            except (ArcadiaError, OSError) as error:
                self.log.info("Lease %s was not released: %s", lease, error)

    def _reserves(self) -> list[str]:
        upstream = self.upstream_list if self.upstream_task_ids else ()
        return [task.task_id for task in upstream if task.task_type == RESERVE]

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
