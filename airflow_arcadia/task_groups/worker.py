"""The task group that launches workers before your tasks and tears them down after them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from airflow.sdk import TaskGroup

from airflow_arcadia.hooks.arcadia import DEFAULT_CONN_ID
from airflow_arcadia.launchers.arcadia_worker.settings import ArcadiaWorkerOptions
from airflow_arcadia.launchers.pod.settings import PodOptions
from airflow_arcadia.lease import DEFAULT_DURATION_S
from airflow_arcadia.operators.batch import ArcadiaBatchInferenceOperator, ArcadiaCheckBatchInputOperator
from airflow_arcadia.operators.ray_cluster import ArcadiaProvisionRayClusterOperator
from airflow_arcadia.operators.worker import (
    ArcadiaLaunchWorkerOperator,
    ArcadiaReserveWorkerOperator,
    ArcadiaTeardownWorkerOperator,
    WarmWorkerParameters,
)
from airflow_arcadia.ray_cluster.kuberay.settings import KubeRayOptions
from airflow_arcadia.sensors.worker import ArcadiaModelReadySensor
from airflow_arcadia.validation import Count, Index, PositiveSeconds, parse
from airflow_arcadia.warm import KeepWarm
from airflow_arcadia.worker import DEFAULT_STARTUP_TIMEOUT_S, EngineOptions


@dataclass(frozen=True)
class _GroupParameters:
    """What the group itself needs when the DAG is parsed; the others its operators validate."""

    num_workers: Count
    startup_timeout: PositiveSeconds
    poll_interval: PositiveSeconds
    teardown_retries: Index


class ArcadiaWorkerGroup(TaskGroup):
    """Wires reserve (setup) → provision_ray_cluster → launch_worker → model_ready → *your tasks* →
    teardown_worker (teardown). Several workers have a launch_worker_N and a model_ready_N each.

    Use it as a context manager and give ``worker.handle`` to the tasks inside. The input of every
    ``ArcadiaBatchInferenceOperator`` that starts inside is checked before anything is launched.

    :param group_id: the group's id; with the DAG and the run it names the worker.
    :param model: path of a model folder, or a repository id the worker's environment can load; for Arcadia's
        Worker its Model's name, or a reference.
    :param num_gpus: ``NUMBER_GPUS``: above 1 the tensor parallel size, placed on the Ray cluster.
    :param num_workers: how many equal workers; a batch spreads its rows over all of them.
    :param ray_cluster: index (``RAY_CLUSTER_INDEX``), name, or ``"auto"``.
    :param create: ``"if_missing"`` makes a Ray cluster for this run where none answers.
    :param ray_cluster_spec: for a created cluster, see ``ArcadiaProvisionRayClusterOperator``.
    :param launcher: how the worker runs; by default a pod where the connection names a Kubernetes cluster,
        else a process of this machine.
    :param served_model_name: name clients use; by default the last part of ``model``.
    :param engine: the engine's options, keys of :class:`~airflow_arcadia.worker.EngineOptions`, e.g.
        ``{"max_num_seqs": 128, "max_model_len": 4096}``.
    :param pod: how the worker's pod is made, keys of
        :class:`~airflow_arcadia.launchers.pod.settings.PodOptions`; a created RayCluster defaults to its
        image, model volume, tolerations and node selector.
    :param custom_resource: how Arcadia's Worker is made or taken online, keys of
        :class:`~airflow_arcadia.launchers.arcadia_worker.settings.ArcadiaWorkerOptions`.
    :param port: port a process serves on; 0 takes a free one. A pod has its own in ``pod``.
    :param additional_envs: Arcadia's ``additionalEnvs``: come last and win.
    :param storage_conn_id: connection to S3 (``aws``), Google Cloud Storage or Azure: for the batches inside
        that name none, and for the worker, which gets it as a secret for batches that it runs itself.
    :param startup_timeout: seconds the worker may take until the model is ready; also what the kubelet gives
        a pod's model to load.
    :param poll_interval: seconds between two checks of a starting worker.
    :param deferrable: wait for the model in the triggerer; None takes Airflow's default.
    :param check_inputs: False for inputs that a task inside the group makes.
    :param teardown_retries: how often a failed teardown is tried again by Airflow.
    :param lease_duration: seconds that a worker outlives the last renewal by Airflow, 15 s to 7 days.
    :param keep_warm: how long the worker stays for other runs after the last one that used it: ``"30m"``,
        seconds or a timedelta, 15 s to 24 h. Runs whose model, options, Ray cluster and connection are equal
        share it, one after another and at the same time; None ends it with its run.
    :param arcadia_conn_id: connection of type ``arcadia``.
    :param task_group_kwargs: further parameters of Airflow's ``TaskGroup``.
    """

    def __init__(
        self,
        group_id: str,
        *,
        model: str | Mapping[str, Any],
        num_gpus: int | str = 1,
        num_workers: int = 1,
        ray_cluster: int | str = 0,
        create: str = "never",
        ray_cluster_spec: KubeRayOptions | None = None,
        served_model_name: str = "",
        engine: EngineOptions | None = None,
        launcher: str | None = None,
        pod: PodOptions | None = None,
        custom_resource: ArcadiaWorkerOptions | None = None,
        port: int | str = 0,
        additional_envs: Mapping[str, str] | None = None,
        storage_conn_id: str | None = None,
        startup_timeout: float = DEFAULT_STARTUP_TIMEOUT_S,
        poll_interval: float = 2.0,
        deferrable: bool | None = None,
        check_inputs: bool = True,
        teardown_retries: int = 2,
        lease_duration: float | str = DEFAULT_DURATION_S,
        keep_warm: KeepWarm = None,
        arcadia_conn_id: str = DEFAULT_CONN_ID,
        **task_group_kwargs: Any,
    ) -> None:
        own = parse(
            _GroupParameters,
            {
                "num_workers": num_workers,
                "startup_timeout": startup_timeout,
                "poll_interval": poll_interval,
                "teardown_retries": teardown_retries,
            },
            "",
        )
        super().__init__(group_id=group_id, **task_group_kwargs)
        self.storage_conn_id = storage_conn_id
        self.check_inputs = check_inputs
        common: dict[str, Any] = {"task_group": self, "dag": self.dag, "arcadia_conn_id": arcadia_conn_id}
        made_from: WarmWorkerParameters = {
            "model": model,
            "num_gpus": num_gpus,
            "num_workers": own.num_workers,
            "ray_cluster": ray_cluster,
            "create": create,
            "ray_cluster_spec": ray_cluster_spec,
            "served_model_name": served_model_name,
            "engine": engine,
            "launcher": launcher,
            "pod": pod,
            "custom_resource": custom_resource,
            "port": port,
            "startup_timeout": own.startup_timeout,
            "additional_envs": additional_envs,
            "storage_conn_id": storage_conn_id,
        }
        self.reserve = ArcadiaReserveWorkerOperator(
            task_id="reserve",
            group=str(self.group_id),
            lease_duration=lease_duration,
            keep_warm=keep_warm,
            worker=made_from if keep_warm else None,
            **common,
        )
        lease: Any = self.reserve.output
        self.provision = ArcadiaProvisionRayClusterOperator(
            task_id="provision_ray_cluster",
            lease=lease,
            ray_cluster=ray_cluster,
            num_gpus=num_gpus,
            num_workers=own.num_workers,
            model=model if isinstance(model, str) else None,  # a reference is not a folder
            create=create,
            ray_cluster_spec=ray_cluster_spec,
            pod=pod,
            **common,
        )
        self.launches: list[ArcadiaLaunchWorkerOperator] = []
        self.ready: list[ArcadiaModelReadySensor] = []
        for index in range(own.num_workers):
            suffix = f"_{index}" if own.num_workers > 1 else ""
            launch = ArcadiaLaunchWorkerOperator(
                task_id=f"launch_worker{suffix}",
                lease=lease,
                model=model,
                ray=self.provision.output,  # type: ignore[arg-type]  # an XComArg is rendered to its value
                num_gpus=num_gpus,
                served_model_name=served_model_name,
                launcher=launcher,
                engine=engine,
                pod=pod,
                custom_resource=custom_resource,
                port=port,
                index=index,
                startup_timeout=own.startup_timeout,
                additional_envs=additional_envs,
                storage_conn_id=storage_conn_id,
                **common,
            )
            ready = ArcadiaModelReadySensor(
                task_id=f"model_ready{suffix}",
                worker=launch.output,  # type: ignore[arg-type]
                startup_timeout=own.startup_timeout,
                poll_interval=own.poll_interval,
                deferrable=deferrable,
                **common,
            )
            self.provision >> launch >> ready
            self.launches.append(launch)
            self.ready.append(ready)
        self.teardown = ArcadiaTeardownWorkerOperator(
            task_id="teardown_worker",
            lease=lease,
            group=str(self.group_id),
            retries=own.teardown_retries,
            **common,
        )
        self.reserve >> self.provision

    @property
    def handle(self) -> Any:
        """The ready worker's handle, as an XComArg: tasks that use it wait for the model by that alone.

        With several workers, the list of all their handles.
        """
        handles = [ready.output for ready in self.ready]
        return handles if len(handles) > 1 else handles[0]

    def __enter__(self) -> ArcadiaWorkerGroup:
        """The group itself; tasks made until the block ends belong to it."""
        super().__enter__()
        return self

    def __exit__(self, exc_type: Any, exc: Any, traceback: Any) -> None:
        """Wire the tasks added inside between model_ready and the teardown."""
        super().__exit__(exc_type, exc, traceback)  # type: ignore[no-untyped-call]
        if exc_type is not None:
            return
        own = {self.reserve, self.provision, *self.launches, *self.ready, self.teardown}
        inside = [task for task in self.iter_tasks() if task not in own]
        for task in inside:
            if isinstance(task, ArcadiaBatchInferenceOperator) and task.storage_conn_id is None:
                task.storage_conn_id = self.storage_conn_id
        ids = {task.task_id for task in inside}
        starts = [task for task in inside if not task.upstream_task_ids & ids]
        ends = [task for task in inside if not task.downstream_task_ids & ids]
        for task in starts:
            self.ready >> task
        for task in ends or self.ready:
            task >> self.teardown
        self.teardown.as_teardown(setups=self.reserve, on_failure_fail_dagrun=True)
        self._check_inputs_of(starts)

    def _check_inputs_of(self, starts: Sequence[object]) -> None:
        batches = [task for task in starts if isinstance(task, ArcadiaBatchInferenceOperator)]
        if not self.check_inputs or not batches:
            return
        check = ArcadiaCheckBatchInputOperator(
            task_id="check_input",
            batches=[
                {
                    "input": b.input,
                    "output": b.output_uri,
                    "parameters": b.parameters,
                    "options": b.options,
                    "storage_conn_id": b.storage_conn_id,
                }
                for b in batches
            ],
            task_group=self,
            dag=self.dag,
        )
        self.reserve >> check >> self.provision
