"""The connection comes from wherever Airflow has it: here a secrets backend."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

READ = """
import asyncio
from airflow_arcadia import ArcadiaHook

hook = ArcadiaHook("arcadia_vault")
loaded = asyncio.run(ArcadiaHook.loaded("arcadia_vault"))
print(hook.api_key, hook.config.ray_clusters[0].name, loaded.ray_token)
"""


@pytest.mark.slow
def test_the_connection_is_read_from_a_secrets_backend_in_tasks_and_triggers(tmp_path: Path):
    extra = {
        "arcadia_config_yaml": "rayClusters: [{name: gpus, headAddress: 127.0.0.1:6379}]",
        "ray_token": "ray-secret",
    }
    connection = {"conn_type": "arcadia", "password": "key-secret", "extra": extra}
    (tmp_path / "connections.json").write_text(json.dumps({"arcadia_vault": connection}))
    env = {key: value for key, value in os.environ.items() if not key.startswith("AIRFLOW")} | {
        "AIRFLOW_HOME": str(tmp_path),
        "AIRFLOW__SECRETS__BACKEND": "airflow.secrets.local_filesystem.LocalFilesystemBackend",
        "AIRFLOW__SECRETS__BACKEND_KWARGS": json.dumps(
            {"connections_file_path": str(tmp_path / "connections.json")}
        ),
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, "-c", READ], env=env, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.stdout.splitlines()[-1:] == ["key-secret gpus ray-secret"], done.stdout + done.stderr
