"""Options of fsspec's file systems from an Airflow connection to S3, Google Cloud Storage or Azure.

Airflow's own object storage makes a file system object of a connection, which cannot be handed to a worker:
a worker has no Airflow. Options are plain data, and the same wherever rows are read: in a task, in
``check_input`` and in the worker. They are named as s3fs, gcsfs and adlfs name them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from airflow.sdk import BaseHook
from airflow.sdk.exceptions import AirflowNotFoundException

from airflow_arcadia.batch.spec import NO_ROW_SENT
from airflow_arcadia.batch.storage.base import protocol_of
from airflow_arcadia.exceptions import ArcadiaConfigError, BatchInputError

S3, GCS, AZURE = ("s3", "s3a"), ("gs", "gcs"), ("abfs", "abfss", "az", "adl")

Options = dict[str, Any]
StorageOptions = dict[str, Options]
"""Protocol → options of its file system."""


def storage_options(conn_id: str | None) -> StorageOptions:
    """The options of that connection, by protocol; none without a connection.

    Raises :class:`ArcadiaConfigError` where there is no such connection, or it is of no object store.
    """
    if not conn_id:
        return {}
    try:
        connection = BaseHook.get_connection(conn_id)
    except AirflowNotFoundException as error:
        raise ArcadiaConfigError(
            f"Airflow has no connection {conn_id!r}, which storage_conn_id names.",
            what_to_do="Add it, or name another connection.",
        ) from error
    known = _KINDS.get(connection.conn_type or "")
    if known is None:
        raise ArcadiaConfigError(
            f"Connection {conn_id!r} is of type {connection.conn_type!r}, which belongs to no object store.",
            what_to_do=f"Name a connection of type {', '.join(sorted(_KINDS))}.",
        )
    protocols, read = known
    extra = connection.extra_dejson
    options = read(connection, extra, conn_id)
    options |= _json_object(extra.get("storage_options") or {}, conn_id, "storage_options")
    return dict.fromkeys(protocols, options)


def storage_of_batch(conn_id: str | None, *uris: str) -> StorageOptions:
    """The same for a batch with these URIs.

    Raises :class:`ArcadiaConfigError` as well where none of them is in a store of the connection's.
    """
    options = storage_options(conn_id)
    if options and not any(protocol_of(uri) in options for uri in uris):
        raise ArcadiaConfigError(
            f"storage_conn_id is {conn_id!r}, but neither input nor output begins with "
            f"{' or '.join(f'{name}://' for name in options)}.",
            what_to_do="Correct the URIs, or leave storage_conn_id out.",
            still_running=NO_ROW_SENT,
        )
    return options


def _of_aws(connection: Any, extra: Mapping[str, Any], conn_id: str) -> Options:
    if extra.get("role_arn"):
        raise ArcadiaConfigError(
            f"Connection {conn_id!r} assumes a role (role_arn), which storage_conn_id cannot hand on.",
            what_to_do="Give the process or pod that role and leave storage_conn_id out, or name one "
            "with keys.",
        )
    client = {"region_name": extra.get("region_name"), "verify": extra.get("verify")}
    config = _json_object(extra.get("service_config") or {}, conn_id, "service_config")
    service = _json_object(config.get("s3") or {}, conn_id, "service_config")
    return _given(
        key=connection.login or extra.get("aws_access_key_id"),
        secret=connection.password or extra.get("aws_secret_access_key"),
        token=extra.get("aws_session_token"),
        profile=extra.get("profile_name"),
        endpoint_url=service.get("endpoint_url") or extra.get("endpoint_url"),
        config_kwargs=extra.get("config_kwargs"),
        client_kwargs=_given(**client),
    )


def _of_google(connection: Any, extra: Mapping[str, Any], conn_id: str) -> Options:
    def field(name: str) -> Any:
        return extra.get(name) or extra.get(f"extra__google_cloud_platform__{name}")

    token: Any = None
    if field("is_anonymous"):
        token = "anon"  # noqa: S105 - gcsfs's word for "without credentials"
    elif field("keyfile_dict"):
        token = _json_object(field("keyfile_dict"), conn_id, "keyfile_dict")
    elif path := field("key_path"):
        # Read here: the worker does not have this machine's files.
        token = _key_file(str(path), conn_id)
    return _given(token=token, project=field("project"), endpoint_url=field("endpoint_url"))


def _of_azure(connection: Any, extra: Mapping[str, Any], conn_id: str) -> Options:
    def field(name: str) -> Any:
        return extra.get(name) or extra.get(f"extra__{connection.conn_type}__{name}")

    host = str(connection.host or "")
    account = (urlsplit(host).hostname or host).partition(".")[0] or field("account_name")
    options = _given(
        account_name=account,
        connection_string=field("connection_string"),
        sas_token=field("sas_token"),
        tenant_id=field("tenant_id"),
        client_id=field("client_id"),
        client_secret=field("client_secret"),
        account_key=field("account_key") or field("shared_access_key"),
    )
    # With a tenant, login and password are an application's; without one, an account's name and key.
    names = ("client_id", "client_secret") if "tenant_id" in options else ("account_name", "account_key")
    return _given(**dict(zip(names, (connection.login, connection.password), strict=True))) | options


_KINDS: dict[str, tuple[tuple[str, ...], Callable[[Any, Mapping[str, Any], str], Options]]] = {
    "aws": (S3, _of_aws),
    "google_cloud_platform": (GCS, _of_google),
    **dict.fromkeys(("wasb", "adls", "azure_data_lake"), (AZURE, _of_azure)),
}


def _given(**fields: Any) -> Options:
    return {name: value for name, value in fields.items() if value not in (None, "", {})}


def _key_file(path: str, conn_id: str) -> Options:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise BatchInputError(
            f"The key file of connection {conn_id!r} cannot be read: {error}.",
            what_to_do="Correct its key_path, or give the key itself as keyfile_dict.",
            still_running=NO_ROW_SENT,
        ) from error
    return _json_object(text, conn_id, "key_path")


def _json_object(value: object, conn_id: str, field: str) -> Options:
    try:
        found = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        found = None
    if not isinstance(found, dict):
        # Without the value: it is a secret.
        raise ArcadiaConfigError(
            f"{field} of connection {conn_id!r} is not a JSON object.", what_to_do="Correct the connection."
        )
    return found
