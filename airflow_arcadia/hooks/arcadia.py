"""The hook: what an ``arcadia`` connection says, as the objects the Airflow-free rooms take."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseHook
from airflow.sdk.exceptions import AirflowFailException, AirflowNotFoundException

from airflow_arcadia.config import ArcadiaConfig
from airflow_arcadia.exceptions import ArcadiaConfigError, ArcadiaError
from airflow_arcadia.launchers.process import ProcessLauncher
from airflow_arcadia.lease_store import LeaseStore, default_root

if TYPE_CHECKING:
    from airflow_arcadia.launchers.base import Launcher

DEFAULT_CONN_ID = "arcadia_default"


class ArcadiaHook(BaseHook):
    """Reads an Airflow connection of type ``arcadia``.

    ============================= ======================================================================
    field                         meaning
    ============================= ======================================================================
    password                      the workers' API key; without one they serve without a key
    extra ``arcadia_config``      path of the arcadia-config file
    extra ``arcadia_config_yaml`` arcadia-config itself, as YAML; wins over the path
    extra ``worker_python``       Python of the worker's environment, for the process launcher
    extra ``state_dir``           where leases, logs and local secrets live; default ``$AIRFLOW_HOME/arcadia``
    extra ``ray_token``           token of Ray clusters that ask for one
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

    def get_conn(self) -> Any:
        """The Airflow connection. Raises :class:`ArcadiaConfigError` when there is none of that id."""
        if self._connection is None:
            try:
                self._connection = self.get_connection(self.arcadia_conn_id)
            except AirflowNotFoundException as error:
                raise ArcadiaConfigError(
                    f"Airflow has no connection {self.arcadia_conn_id!r}.",
                    what_to_do="Add one of type arcadia, or name another arcadia_conn_id.",
                ) from error
        return self._connection

    def _extra(self, key: str) -> str | None:
        value = self.get_conn().extra_dejson.get(key)
        return str(value) if value not in (None, "") else None

    @property
    def config(self) -> ArcadiaConfig:
        """arcadia-config, parsed. Raises :class:`ArcadiaConfigError` when absent or wrong."""
        if text := self._extra("arcadia_config_yaml"):
            return ArcadiaConfig.from_yaml(text)
        if path := self._extra("arcadia_config"):
            return ArcadiaConfig.from_file(path)
        raise ArcadiaConfigError(
            f"Connection {self.arcadia_conn_id!r} says nothing about arcadia-config.",
            what_to_do="Set its extra arcadia_config to the file's path, or arcadia_config_yaml to its text.",
        )

    @property
    def store(self) -> LeaseStore:
        """Where this machine's leases are."""
        root = self._extra("state_dir")
        return LeaseStore(Path(root) if root else default_root())

    @property
    def worker_python(self) -> str:
        """Python of the worker's environment: vLLM's pins and Airflow's need not meet in one."""
        return self._extra("worker_python") or os.environ.get("ARCADIA_WORKER_PYTHON") or sys.executable

    def launcher(self, name: str) -> Launcher:
        """The launcher of that name. Raises :class:`ArcadiaConfigError` naming those that exist."""
        return make_launcher(name, self.store, self.worker_python)

    def launchers(self) -> dict[str, Launcher]:
        """Every launcher by name: what a teardown may need."""
        return {ProcessLauncher.name: self.launcher(ProcessLauncher.name)}

    def api_key_file(self, lease_name: str) -> str | None:
        """File with the workers' API key under the lease (mode 0600); None when the connection has none."""
        return self._secret_file(lease_name, "api-key", self.get_conn().password)

    def ray_token_file(self, lease_name: str) -> str | None:
        """File with Ray's token under the lease (mode 0600); None when the connection has none."""
        return self._secret_file(lease_name, "ray-token", self._extra("ray_token"))

    def _secret_file(self, lease_name: str, name: str, secret: str | None) -> str | None:
        if not secret:
            return None
        path = self.store.directory(lease_name) / name
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(secret)
        return str(path)


def make_launcher(name: str, store: LeaseStore, worker_python: str) -> Launcher:
    """The launcher of that name. Raises :class:`ArcadiaConfigError` naming those that exist."""
    if name == ProcessLauncher.name:
        return ProcessLauncher(store, worker_python)
    raise ArcadiaConfigError(f"There is no launcher {name!r}.", what_to_do=f"Use {ProcessLauncher.name!r}.")


@contextlib.contextmanager
def no_retry_where_useless() -> Iterator[None]:
    """Turn an error that a retry cannot mend into Airflow's own "fail, do not retry"."""
    try:
        yield
    except ArcadiaError as error:
        if error.retryable:
            raise
        raise AirflowFailException(str(error)) from error
