"""How many CPUs a worker has, and which of its processes comes first."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from airflow_arcadia.runtime.cpu_budget import NICENESS, usable_cpus

PRIORITIES = """
import os, threading
from airflow_arcadia.runtime.cpu_budget import give_way
waiting = threading.Event()
threading.Thread(target=waiting.wait).start()
give_way({ranks}, few=10_000)
print(*{{os.getpriority(os.PRIO_PROCESS, int(thread)) for thread in os.listdir("/proc/self/task")}})
waiting.set()
"""


@pytest.mark.parametrize(("ranks", "lower"), [(0, True), (10_000, False)])
def test_every_thread_of_the_server_gives_way_unless_ranks_wait_busily_on_every_cpu(ranks: int, lower: bool):
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
