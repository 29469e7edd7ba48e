"""What every process of a worker's engine does first."""

import os
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint

import pytest

from airflow_arcadia.processes import mark
from airflow_arcadia.runtime.engine_process import SWITCH_INTERVAL_S, register
from tests.conftest import ROOT

TELL = (
    "import sys; from airflow_arcadia.runtime.engine_process import register; register(); register();"
    "print(sys.getswitchinterval())"
)


def test_vllm_finds_the_plugin():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    ((name, value),) = project["entry-points"]["vllm.general_plugins"].items()
    assert EntryPoint(name, value, "vllm.general_plugins").load() is register


@pytest.mark.parametrize(
    ("marks", "interval"), [(mark("lease", "worker/w"), SWITCH_INTERVAL_S), ({}, sys.getswitchinterval())]
)
def test_threads_ask_for_pythons_lock_sooner_inside_a_worker_and_as_ever_elsewhere(marks, interval):
    told = subprocess.run(
        [sys.executable, "-c", TELL], env={**os.environ, **marks}, capture_output=True, text=True, check=True
    )
    assert float(told.stdout) == pytest.approx(interval)
