"""An S3 server of this test's, with a bucket that is reached through the keys of a connection alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import pytest
from moto.server import ThreadedMotoServer

KEY, SECRET = "kept-key-id", "kept-secret-key"
_OF_THIS_MACHINE = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_ENDPOINT_URL")


@dataclass
class Bucket:
    """An empty bucket.

    :param uri: ``s3://…``.
    :param options: what fsspec needs to reach it.
    """

    uri: str
    options: dict[str, Any]
    fs: Any

    def put(self, name: str, content: bytes) -> str:
        """Write a file; returns its URI."""
        self.fs.pipe_file(f"{self.uri}/{name}", content)
        return f"{self.uri}/{name}"

    def read(self, name: str) -> bytes:
        """Read a file."""
        self.fs.invalidate_cache()
        return bytes(self.fs.cat_file(f"{self.uri}/{name}"))


@pytest.fixture(scope="module")
def s3_url() -> Iterator[str]:
    """URL of the server."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Bucket]:
    """A bucket; the connection ``store`` has its keys, and this process none of its own."""
    for name in _OF_THIS_MACHINE:
        monkeypatch.delenv(name, raising=False)
    # No files of a user, and no question to the metadata service of a cloud.
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    connection = {"conn_type": "aws", "login": KEY, "password": SECRET, "extra": {"endpoint_url": s3_url}}
    monkeypatch.setenv("AIRFLOW_CONN_STORE", json.dumps(connection))
    options = {"key": KEY, "secret": SECRET, "endpoint_url": s3_url}
    fs = fsspec.filesystem("s3", **options)
    fs.makedirs("rows", exist_ok=True)
    yield Bucket("s3://rows", options, fs)
    fs.invalidate_cache()
    fs.rm("rows", recursive=True)
    type(fs).clear_instance_cache()
