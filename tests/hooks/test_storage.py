"""What a connection to an object store becomes: options of its file system, and errors without the secret."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from airflow_arcadia.exceptions import ArcadiaConfigError, BatchInputError
from airflow_arcadia.hooks.storage import storage_of_batch, storage_options

KEY = {"type": "service_account", "private_key": "kept-private-key"}


def connect(monkeypatch: pytest.MonkeyPatch, conn_type: str, extra: dict[str, Any], **fields: Any) -> None:
    """The connection ``store`` of this test."""
    connection = {"conn_type": conn_type, "extra": extra, **fields}
    monkeypatch.setenv("AIRFLOW_CONN_STORE", json.dumps(connection))


@pytest.mark.parametrize(
    ("conn_type", "fields", "extra", "protocol", "options"),
    [
        ("aws", {"login": "id", "password": "key"}, {}, "s3", {"key": "id", "secret": "key"}),
        (
            "aws",
            {"login": "id", "password": "key"},
            {"region_name": "eu-west-1", "endpoint_url": "http://minio:9000", "aws_session_token": "t"},
            "s3a",
            {
                "key": "id",
                "secret": "key",
                "token": "t",
                "endpoint_url": "http://minio:9000",
                "client_kwargs": {"region_name": "eu-west-1"},
            },
        ),
        ("aws", {}, {}, "s3", {}),
        ("google_cloud_platform", {}, {"keyfile_dict": json.dumps(KEY)}, "gs", {"token": KEY}),
        (
            "google_cloud_platform",
            {},
            {"project": "p", "is_anonymous": True},
            "gcs",
            {"token": "anon", "project": "p"},
        ),
        (
            "wasb",
            {"login": "account", "password": "key"},
            {},
            "abfs",
            {"account_name": "account", "account_key": "key"},
        ),
        (
            "wasb",
            {"host": "https://account.blob.core.windows.net", "login": "app", "password": "pw"},
            {"tenant_id": "tenant"},
            "az",
            {"account_name": "account", "tenant_id": "tenant", "client_id": "app", "client_secret": "pw"},
        ),
        ("wasb", {}, {"connection_string": "c"}, "abfss", {"connection_string": "c"}),
        ("aws", {}, {"storage_options": {"anon": True}}, "s3", {"anon": True}),
    ],
)
def test_a_connection_becomes_what_its_file_system_takes(  # noqa: PLR0917
    monkeypatch: pytest.MonkeyPatch,
    conn_type: str,
    fields: dict[str, Any],
    extra: dict[str, Any],
    protocol: str,
    options: dict[str, Any],
):
    connect(monkeypatch, conn_type, extra, **fields)
    assert storage_options("store")[protocol] == options


def test_a_key_file_is_read_here_since_a_worker_does_not_have_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    (tmp_path / "key.json").write_text(json.dumps(KEY))
    connect(monkeypatch, "google_cloud_platform", {"key_path": str(tmp_path / "key.json")})
    assert storage_options("store")["gs"] == {"token": KEY}
    connect(monkeypatch, "google_cloud_platform", {"key_path": str(tmp_path / "none.json")})
    with pytest.raises(BatchInputError, match="key file of connection 'store' cannot be read"):
        storage_options("store")


def test_without_a_connection_there_are_no_options():
    assert storage_options(None) == {}
    assert storage_of_batch(None, "in.jsonl", "out.jsonl") == {}


@pytest.mark.parametrize(
    ("conn_type", "extra", "said"),
    [
        ("http", {}, "is of type 'http', which belongs to no object store"),
        ("aws", {"role_arn": "arn:aws:iam::1:role/r"}, "assumes a role"),
        ("google_cloud_platform", {"keyfile_dict": "{kept-secret"}, "keyfile_dict .* is not a JSON object"),
    ],
)
def test_what_cannot_work_is_said_without_the_secret(
    monkeypatch: pytest.MonkeyPatch, conn_type: str, extra: dict[str, Any], said: str
):
    connect(monkeypatch, conn_type, extra)
    with pytest.raises(ArcadiaConfigError, match=said) as refused:
        storage_options("store")
    assert "kept" not in str(refused.value)


def test_a_connection_that_is_not_there_is_named():
    with pytest.raises(ArcadiaConfigError, match="no connection 'nowhere'"):
        storage_options("nowhere")


def test_a_connection_that_no_uri_uses_is_a_mistake(monkeypatch: pytest.MonkeyPatch):
    connect(monkeypatch, "aws", {}, login="id", password="key")
    assert "s3" in storage_of_batch("store", "/in.jsonl", "s3://b/out.jsonl")
    with pytest.raises(ArcadiaConfigError, match="neither input nor output begins with s3://"):
        storage_of_batch("store", "/in.jsonl", "gs://b/out.jsonl")
