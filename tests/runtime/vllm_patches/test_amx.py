"""Processes ask for the CPU's AMX registers."""

import os
import subprocess
from pathlib import Path

import pytest

from airflow_arcadia.runtime.vllm_patches.amx import has_amx
from airflow_arcadia.runtime.vllm_patches.gate import SERVER_VARIABLE

CPUINFO = Path("/proc/cpuinfo")

# 158: arch_prctl(2); 0x1022: ARCH_GET_XCOMP_PERM; bit 18: the tiles' data.
TELL = """
import ctypes
from airflow_arcadia.runtime.vllm_patches import plugin

def granted():
    features = ctypes.c_uint64()
    ctypes.CDLL(None).syscall(158, 0x1022, ctypes.byref(features))
    return bool(features.value & 1 << 18)

before = granted()
plugin.register()
print(before, granted())
"""


def test_a_cpu_with_amx_is_known_by_its_flags(tmp_path: Path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nflags\t\t: fpu avx512f amx_bf16 amx_tile\n")
    assert has_amx(cpuinfo)
    cpuinfo.write_text("processor\t: 0\nflags\t\t: fpu avx512f\nmodel name\t: amx_tile\n")
    assert not has_amx(cpuinfo)
    assert not has_amx(tmp_path / "absent")


@pytest.mark.engine
@pytest.mark.skipif(not has_amx(CPUINFO), reason="this CPU has no AMX")
@pytest.mark.parametrize(("env", "granted"), [({SERVER_VARIABLE: "w"}, "False True"), ({}, "False False")])
def test_a_process_of_a_worker_is_given_the_registers(worker_python: str, env: dict[str, str], granted: str):
    told = subprocess.run(
        [worker_python, "-c", TELL], env={**os.environ, **env}, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert told[-1] == granted
