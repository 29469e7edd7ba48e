"""The plug-in, as vLLM calls it in its processes."""

import os
import subprocess
from importlib.metadata import EntryPoint

import pytest
import tomllib

from airflow_arcadia.runtime.vllm_patches.gate import SERVER_VARIABLE, SWITCH_VARIABLE
from airflow_arcadia.runtime.vllm_patches.plugin import register
from tests.conftest import ROOT

# In a child of multiprocessing, as vLLM's core and ranks are.
TELL = """
import multiprocessing, sys

def tell():
    from airflow_arcadia.runtime import cpu_budget
    cpu_budget.FEW_CPUS = {few}
    from airflow_arcadia.runtime.vllm_patches import plugin
    plugin.register()
    plugin.register()
    from vllm.distributed.device_communicators.shm_broadcast import SpinCondition
    print("waits as", SpinCondition.wait.__module__.partition(".")[0])

if __name__ == "__main__":
    child = multiprocessing.get_context("fork").Process(target=tell, name="{process}")
    child.start()
    child.join()
    sys.exit(child.exitcode)
"""
OURS, VLLMS = "waits as airflow_arcadia", "waits as vllm"


def test_vllm_finds_the_plugin():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    ((name, value),) = project["entry-points"]["vllm.general_plugins"].items()
    assert EntryPoint(name, value, "vllm.general_plugins").load() is register


@pytest.mark.engine
@pytest.mark.parametrize(
    ("env", "process", "few", "said"),
    [
        ({SERVER_VARIABLE: "w"}, "EngineCore", 10_000, ["parent_death is on:", "core_wait is on:"]),
        ({SERVER_VARIABLE: "w"}, "EngineCore_DP0", 0, ["parent_death is on:", "core_wait is off:"]),
        ({SERVER_VARIABLE: "w"}, "VllmWorker-0", 10_000, ["parent_death is on:"]),
        (
            {SERVER_VARIABLE: "w", SWITCH_VARIABLE: "off"},
            "EngineCore",
            10_000,
            ["parent_death is off:", "core_wait is off:", "cpu_platform is off:"],
        ),
        ({}, "EngineCore", 10_000, []),
    ],
    ids=["few CPUs", "many CPUs", "a rank", "switched off", "not in a worker"],
)
def test_each_process_of_a_worker_gets_its_patches_and_says_so_once(
    worker_python: str, env: dict[str, str], process: str, few: int, said: list[str]
):
    told = subprocess.run(
        [worker_python, "-c", TELL.format(few=few, process=process)],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    lines = [line for line in told if line.startswith("arcadia: vLLM patch")]
    # Whether there is a line about AMX depends on this machine's CPU.
    assert [" ".join(line.split()[3:6]) for line in lines if " patch amx " not in line] == said
    assert told[-1] == (OURS if "core_wait is on:" in said else VLLMS)
