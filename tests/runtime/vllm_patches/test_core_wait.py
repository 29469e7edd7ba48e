"""How the engine's processes wait."""

import os
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import tomllib

from airflow_arcadia.processes import mark
from airflow_arcadia.runtime.vllm_patches.core_wait import NICENESS, register, usable_cpus
from tests.conftest import ROOT

TELL = """
import multiprocessing
multiprocessing.current_process().name = "{process}"
from airflow_arcadia.runtime.vllm_patches import core_wait
core_wait.FEW_CPUS = {few}
core_wait.register()
core_wait.register()
from vllm.distributed.device_communicators import shm_broadcast
print(shm_broadcast.SpinCondition.wait.__module__)
"""
OURS = "airflow_arcadia.runtime.vllm_patches.core_wait"
VLLMS = "vllm.distributed.device_communicators.shm_broadcast"


def test_vllm_finds_the_plugin():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    ((name, value),) = project["entry-points"]["vllm.general_plugins"].items()
    assert EntryPoint(name, value, "vllm.general_plugins").load() is register


@pytest.mark.engine
@pytest.mark.parametrize(
    ("marks", "process", "few", "how"),
    [
        (mark("lease", "worker/w"), "EngineCore", 10_000, OURS),
        (mark("lease", "worker/w"), "EngineCore", 0, VLLMS),
        (mark("lease", "worker/w"), "VllmWorker-0", 10_000, VLLMS),
        ({}, "EngineCore", 10_000, VLLMS),
    ],
    ids=["few CPUs", "many CPUs", "a rank", "not ours"],
)
def test_only_the_core_of_a_worker_of_ours_on_few_cpus_waits_for_notices(
    worker_python: str, marks: dict[str, str], process: str, few: int, how: str
):
    told = subprocess.run(
        [worker_python, "-c", TELL.format(few=few, process=process)],
        env={**os.environ, **marks},
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.splitlines()[-1] == how


PRIORITIES = """
import os, threading
from airflow_arcadia.runtime.vllm_patches import core_wait
core_wait.FEW_CPUS = 10_000
waiting = threading.Event()
threading.Thread(target=waiting.wait).start()
core_wait.give_way({ranks})
print(*{{os.getpriority(os.PRIO_PROCESS, int(thread)) for thread in os.listdir("/proc/self/task")}})
waiting.set()
"""


@pytest.mark.parametrize(("ranks", "lower"), [(0, True), (10_000, False)])
def test_every_thread_of_the_server_gives_way_unless_ranks_spin_on_every_cpu(ranks: int, lower: bool):
    words = [sys.executable, "-c", PRIORITIES.format(ranks=ranks)]
    told = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
    here = os.getpriority(os.PRIO_PROCESS, 0)
    assert told == [str(NICENESS if lower else here)]


@pytest.mark.parametrize(("text", "most"), [("150000 100000\n", 1.5), ("max 100000\n", None), ("", None)])
def test_a_containers_limit_counts_where_it_is_lower(tmp_path: Path, text: str, most: float | None):
    (tmp_path / "cpu.max").write_text(text)
    here = len(os.sched_getaffinity(0))
    assert usable_cpus(tmp_path / "cpu.max") == (min(most, here) if most else here)
    assert usable_cpus(tmp_path / "absent") == here


WAIT = """
import threading, zmq
from airflow_arcadia.runtime.vllm_patches import core_wait
from vllm.distributed.device_communicators.shm_broadcast import SpinCondition
SpinCondition.wait = core_wait.at_once(SpinCondition.wait)
core_wait.LONGEST_WAIT_MS = {longest}
context = zmq.Context()
address = "ipc://{folder}/notices"
writer = SpinCondition(is_reader=False, context=context, notify_address=address)
reader = SpinCondition(is_reader=True, context=context, notify_address=address)
woken = threading.Event()

def write():
    while {writes} and not woken.wait(0.01):
        writer.notify()

thread = threading.Thread(target=write)
thread.start()
for _ in range(3):
    reader.record_read()
    reader.wait(None)
woken.set()
thread.join()
print("woken")
# Sockets with something left to send keep a process from ending.
context.destroy(linger=0)
"""


@pytest.mark.engine
@pytest.mark.parametrize(("longest", "writes"), [(600_000, True), (1, False)], ids=["notice", "none"])
def test_a_notice_wakes_the_core_and_so_does_time(
    worker_python: str, tmp_path: Path, longest: int, writes: bool
):
    script = WAIT.format(folder=tmp_path, longest=longest, writes=writes)
    words = [worker_python, "-c", script]
    told = subprocess.run(words, capture_output=True, text=True, check=True, timeout=120)
    assert told.stdout.splitlines()[-1] == "woken"
