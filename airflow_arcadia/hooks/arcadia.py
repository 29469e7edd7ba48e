"""The hook: turns an ``arcadia`` connection into launchers, leases and Ray cluster backends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.connection import get_async_connection, get_async_extra_dejson
from airflow.sdk import BaseHook
from airflow.sdk.exceptions import AirflowFailException, AirflowNotFoundException

from airflow_arcadia.batch import Endpoint
from airflow_arcadia.batch.batch_api import RemoteBatches
from airflow_arcadia.config import ArcadiaConfig
from airflow_arcadia.exceptions import ArcadiaConfigError, ArcadiaError
from airflow_arcadia.hooks._connection_check import check_connection, summarize
from airflow_arcadia.hooks.kubernetes import kubernetes_api
from airflow_arcadia.kubernetes.api import KubernetesApi
from airflow_arcadia.kubernetes.config_map import read_config_map
from airflow_arcadia.kubernetes.kinds import Object
from airflow_arcadia.kubernetes.leases import KubernetesLeases
from airflow_arcadia.kubernetes.pod_template import API_KEY, BATCH_TOKEN, HF_TOKEN, RAY_TOKEN
from airflow_arcadia.launchers.arcadia_worker.launcher import CustomResourceLauncher
from airflow_arcadia.launchers.arcadia_worker.settings import WorkerResourceSettings
from airflow_arcadia.launchers.base import Credentials, Launcher
from airflow_arcadia.launchers.pod.launcher import PodLauncher
from airflow_arcadia.launchers.pod.settings import PodSettings
from airflow_arcadia.launchers.probe import observe
from airflow_arcadia.launchers.process import ProcessLauncher
from airflow_arcadia.launchers.reap_backends import ClusterBackend, LocalBackend
from airflow_arcadia.launchers.teardown import teardown, teardown_in_cluster
from airflow_arcadia.launchers.warm import WarmWorkers
from airflow_arcadia.lease_store import Leases, LeaseStore, default_root
from airflow_arcadia.ray_cluster.backend import RayBackend
from airflow_arcadia.ray_cluster.kuberay.backend import KubeRayBackend
from airflow_arcadia.ray_cluster.local import LocalRayBackend, worker_versions
from airflow_arcadia.readiness import Observation, ProcessObservation

if TYPE_CHECKING:
    from airflow_arcadia.launchers.reaper import Backend
    from airflow_arcadia.worker import WorkerHandle

log = logging.getLogger(__name__)

DEFAULT_CONN_ID = "arcadia_default"
LOCAL_LAUNCHERS: tuple[type[Launcher], ...] = (ProcessLauncher,)
KUBERNETES_LAUNCHERS: tuple[type[Launcher], ...] = (PodLauncher, CustomResourceLauncher)
"""By where a connection runs workers; the first is the default."""
_UNFIT_GRACE_S = 5.0
"""Seconds that a worker which is not healthy may take to end before it is killed."""


class ArcadiaHook(BaseHook):
    """Reads an Airflow connection of type ``arcadia``.

    ============================= ======================================================================
    field                         meaning
    ============================= ======================================================================
    password                      the workers' API key; without one, each worker in a cluster gets a random
                                  key, and local processes serve without a key
    extra ``arcadia_config``      path of the arcadia-config file
    extra ``arcadia_config_yaml`` arcadia-config itself, as YAML; wins over the path
    extra ``worker_python``       Python of the worker's environment, for the process launcher
    extra ``state_dir``           where leases, logs and local secrets live; default ``$AIRFLOW_HOME/arcadia``
    extra ``arcadia_config_map``  name of the ConfigMap that holds arcadia-config under the key ``config``
    extra ``ray_token``           token of Ray clusters that ask for one
    extra ``hf_token``            Hugging Face token of workers in a cluster
    extra ``kubernetes_conn_id``  connection of type ``kubernetes``: workers are pods there; without one they
                                  are processes of this machine
    extra ``namespace``           namespace of the workers; default the kubernetes connection's
    extra ``generate_api_key``    ``false``: pods without a password serve without a key
    ============================= ======================================================================

    :param arcadia_conn_id: id of the connection.
    """

    conn_name_attr = "arcadia_conn_id"
    default_conn_name = DEFAULT_CONN_ID
    conn_type = "arcadia"
    hook_name = "KubeAGI Arcadia"

    def __init__(self, arcadia_conn_id: str = DEFAULT_CONN_ID) -> None:
        super().__init__()
        self.arcadia_conn_id = arcadia_conn_id
        self._connection: Any = None
        self._extras: Mapping[str, Any] | None = None
        self._kubernetes_extras: Mapping[str, Any] | None = None

    @classmethod
    async def loaded(cls, arcadia_conn_id: str) -> ArcadiaHook:
        """A hook that has read its connections already: in a trigger nothing may block later."""
        hook = cls(arcadia_conn_id)
        try:
            hook._connection = await get_async_connection(arcadia_conn_id)
        except AirflowNotFoundException as error:
            raise _no_connection(arcadia_conn_id) from error
        hook._extras = await get_async_extra_dejson(hook._connection)
        if hook.kubernetes_conn_id:
            found = await get_async_connection(hook.kubernetes_conn_id)
            hook._kubernetes_extras = await get_async_extra_dejson(found)
        return hook

    def get_conn(self) -> Any:
        """The Airflow connection. Raises :class:`ArcadiaConfigError` when there is none of that id."""
        if self._connection is None:
            self._connection = self._read(self.arcadia_conn_id)
        return self._connection

    def _read(self, conn_id: str) -> Any:
        try:
            return self.get_connection(conn_id)
        except AirflowNotFoundException as error:
            raise _no_connection(conn_id) from error

    def _extra(self, key: str) -> str | None:
        if self._extras is None:
            self._extras = self.get_conn().extra_dejson
        value = self._extras.get(key)
        return str(value) if value not in (None, "") else None

    def test_connection(self) -> tuple[bool, str]:
        """What the *Test* button of the connection form says: whether the connection is usable, and why not.

        Reads arcadia-config, asks each Ray cluster, and the worker's Python or the Kubernetes cluster.
        """
        return summarize(check_connection(self, worker_versions))

    @property
    def ray_token(self) -> str | None:
        """The token of Ray clusters that ask for one."""
        return self._extra("ray_token")

    @property
    def hf_token(self) -> str | None:
        """The connection's Hugging Face token."""
        return self._extra("hf_token")

    @property
    def config(self) -> ArcadiaConfig:
        """arcadia-config, parsed. Raises :class:`ArcadiaConfigError` when absent or wrong."""
        if text := self._extra("arcadia_config_yaml"):
            return ArcadiaConfig.from_yaml(text)
        if path := self._extra("arcadia_config"):
            return ArcadiaConfig.from_file(path)
        if name := self._extra("arcadia_config_map"):
            return ArcadiaConfig.from_yaml(
                self.kubernetes.run(lambda session: read_config_map(session, name))
            )
        raise ArcadiaConfigError(
            f"Connection {self.arcadia_conn_id!r} says nothing about arcadia-config.",
            what_to_do="Set its extra arcadia_config to the file's path, arcadia_config_yaml to its text, or "
            "arcadia_config_map to its ConfigMap.",
        )

    @property
    def kubernetes_conn_id(self) -> str | None:
        """The ``kubernetes`` connection to run in, or None to run on this machine."""
        return self._extra("kubernetes_conn_id")

    @property
    def kubernetes(self) -> KubernetesApi:
        """The namespace to run in. Raises :class:`ArcadiaConfigError` where no cluster is named."""
        conn_id = self.kubernetes_conn_id
        if conn_id is None:
            raise ArcadiaConfigError(
                f"Connection {self.arcadia_conn_id!r} names no Kubernetes cluster.",
                what_to_do="Set its extra kubernetes_conn_id to a connection of type kubernetes.",
            )
        if self._kubernetes_extras is None:
            self._kubernetes_extras = self._read(conn_id).extra_dejson
        return kubernetes_api(self._kubernetes_extras, self._extra("namespace"))

    @property
    def store(self) -> LeaseStore:
        """Where leases of this machine are, and secret files and logs beside them."""
        root = self._extra("state_dir")
        return LeaseStore(Path(root) if root else default_root())

    @property
    def leases(self) -> Leases:
        """Where leases are: in the cluster where there is one, else on this machine."""
        return KubernetesLeases(self.kubernetes) if self.kubernetes_conn_id else self.store

    def ray_backend(self, lease: str) -> RayBackend:
        """Where Ray clusters are found and made for workers of that lease."""
        if self.kubernetes_conn_id:
            api = self.kubernetes
            return KubeRayBackend(api, KubernetesLeases(api), self._extra("ray_token"))
        token = self._extra("ray_token")
        token_file = str(self.store.write_secret(lease, RAY_TOKEN, token)) if token else None
        return LocalRayBackend(self.store, self.worker_python, token_file)

    @property
    def worker_python(self) -> str:
        """The worker's Python: vLLM and Airflow pin different versions of the same packages."""
        return self._extra("worker_python") or os.environ.get("ARCADIA_WORKER_PYTHON") or sys.executable

    def launcher_type(self, name: str | None) -> type[Launcher]:
        """The launcher asked for, or the default: a pod where the connection names a cluster.

        Raises :class:`ArcadiaConfigError` naming those that this connection can use.
        """
        usable = self._launcher_types
        for kind in usable:
            if name in {None, "", kind.name}:
                return kind
        where = "in a cluster" if self.kubernetes_conn_id else "on this machine"
        raise ArcadiaConfigError(
            f"There is no launcher {name!r} for connection {self.arcadia_conn_id!r}, which runs workers "
            f"{where}.",
            what_to_do=f"Use {' or '.join(repr(kind.name) for kind in usable)}, or a connection "
            f"{'without' if self.kubernetes_conn_id else 'with'} kubernetes_conn_id.",
        )

    @property
    def _launcher_types(self) -> tuple[type[Launcher], ...]:
        return KUBERNETES_LAUNCHERS if self.kubernetes_conn_id else LOCAL_LAUNCHERS

    def launcher(self, name: str | None) -> Launcher:
        """The launcher of that name, to find, observe and end what it launched."""
        kind = self.launcher_type(name)
        if kind is PodLauncher:
            return self.pod_launcher()
        if kind is CustomResourceLauncher:
            return self.custom_resource_launcher()
        return self.process_launcher()

    def process_launcher(
        self, port: int = 0, more_secrets: Mapping[str, str] | None = None
    ) -> ProcessLauncher:
        """What launches processes on this machine.

        :param port: port to serve on; 0 takes a free one.
        :param more_secrets: what the worker may know beside the connection's own, by names of files.
        """
        known = {**self.secrets, **(more_secrets or {})}
        return ProcessLauncher(self.store, self.worker_python, port=port, secrets=known)

    def pod_launcher(
        self,
        settings: PodSettings | None = None,
        request: Callable[[Object], Object] | None = None,
        more_secrets: Mapping[str, str] | None = None,
    ) -> PodLauncher:
        """What launches pods.

        :param settings: how they are made; only needed to launch.
        :param request: last change to a pod's manifest before it is sent.
        :param more_secrets: what the worker may know beside the connection's own, by names of files.
        """
        api = self.kubernetes
        known = {**self.secrets, **(more_secrets or {})}
        return PodLauncher(api, KubernetesLeases(api), settings, known, request)

    def custom_resource_launcher(
        self, settings: WorkerResourceSettings | None = None
    ) -> CustomResourceLauncher:
        """What launches Arcadia's Workers.

        :param settings: how they are made; only needed to launch.
        """
        api = self.kubernetes
        return CustomResourceLauncher(api, KubernetesLeases(api), settings, self._secrets(self.api_key))

    def launchers(self) -> dict[str, Launcher]:
        """Every launcher of this connection by name: what a monitor may need."""
        return {kind.name: self.launcher(kind.name) for kind in self._launcher_types}

    def end(self, lease: str, *, grace_s: float) -> list[str]:
        """End everything the lease owns; returns what is still there, as text.

        A warm worker that it uses stays for the next run if it is healthy and not busy.
        """
        if self.kubernetes_conn_id:
            return teardown_in_cluster(
                self.kubernetes, lease, self.launchers(), grace_s=grace_s, look=self.look
            )
        return teardown(self.store, lease, self.launchers(), grace_s=grace_s, look=self.look)

    @property
    def warm_workers(self) -> WarmWorkers:
        """The warm workers of this connection."""
        return WarmWorkers(
            self.leases, look=self.look, end=lambda lease: self.end(lease, grace_s=_UNFIT_GRACE_S)
        )

    def look(self, handle: WorkerHandle) -> Observation:
        """Look at a worker once, one generation included; one whose key cannot be read is not healthy."""
        try:
            return asyncio.run(self.observe(handle))
        except ArcadiaError as error:
            return Observation(ProcessObservation(None), said=error.what)

    async def observe(self, handle: WorkerHandle) -> Observation:
        """All evidence of one moment. Raises as :meth:`credentials`."""
        launcher = self.launcher(handle.launcher)
        return await observe(launcher, handle, (await launcher.credentials(handle)).api_key)

    @property
    def reap_backend(self) -> Backend:
        """Every lease of this connection, for a reaper."""
        if self.kubernetes_conn_id:
            return ClusterBackend(self.kubernetes, self.launchers(), self.look)
        return LocalBackend(self.store, self.launchers(), self.look)

    @property
    def api_key(self) -> str | None:
        """The API key that the connection gives all its workers; :meth:`credentials` reads a worker's own."""
        return self.get_conn().password or None

    @property
    def generates_api_keys(self) -> bool:
        """Whether each worker gets a random API key: in a cluster, unless the connection says otherwise.

        Raises :class:`ArcadiaConfigError` for a setting that is neither true nor false.
        """
        said = self._extra("generate_api_key") or "true"
        if said.lower() not in {"true", "false"}:
            raise ArcadiaConfigError(
                f"generate_api_key of connection {self.arcadia_conn_id!r} is {said!r}.",
                what_to_do="Set it to true or false.",
            )
        return self.kubernetes_conn_id is not None and self.api_key is None and said.lower() == "true"

    @property
    def secrets(self) -> dict[str, str]:
        """What workers may know, by the names of their files: the API key and the tokens.

        A key that is made here is of one launch alone, as the batch token is: another attempt finds the file
        or Secret of the first, and so its key and token.
        """
        return self._secrets(secrets.token_urlsafe(32) if self.generates_api_keys else self.api_key)

    def _secrets(self, api_key: str | None) -> dict[str, str]:
        found = {
            API_KEY: api_key,
            RAY_TOKEN: self.ray_token,
            HF_TOKEN: self.hf_token,
            BATCH_TOKEN: secrets.token_urlsafe(32),
        }
        return {key: value for key, value in found.items() if value}

    async def credentials(self, handle: WorkerHandle) -> Credentials:
        """The API key and the token that the worker was launched with.

        Raises :class:`ArcadiaError` when they cannot be read: that is never "the worker asks for no key".
        """
        return await self.launcher(handle.launcher).credentials(handle)

    async def endpoint(self, handle: WorkerHandle) -> Endpoint:
        """Where the worker's server is, and its key. Raises as :meth:`credentials`."""
        return Endpoint(handle.url, (await self.credentials(handle)).api_key)

    async def remote_batches(self, handle: WorkerHandle) -> RemoteBatches:
        """The worker's Batch API, for tasks of its own run. Raises as :meth:`credentials`."""
        known = await self.credentials(handle)
        return RemoteBatches(Endpoint(handle.url, known.api_key), known.batch_token)


def _no_connection(conn_id: str) -> ArcadiaConfigError:
    return ArcadiaConfigError(
        f"Airflow has no connection {conn_id!r}.",
        what_to_do="Add it, or name another connection.",
    )


@contextlib.contextmanager
def fail_without_retry() -> Iterator[None]:
    """Turn an error that no other attempt can avoid into Airflow's own "fail, do not retry".

    The error is logged first, a line for each of its parts: Airflow shows an exception as one long line
    below a traceback.
    """
    try:
        yield
    except ArcadiaError as error:
        for line in error.lines:
            log.error("%s", line)  # noqa: TRY400 - Airflow logs the traceback of what is raised below
        if error.retryable:
            raise
        # Without its cause: that says the same once more, with a traceback of its own.
        raise AirflowFailException(str(error)) from None
