"""The engine's processes end with the process that started them."""

import signal
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from tests.conftest import wait_for

# As vLLM's API server starts its engine core; the core ignores SIGTERM.
SERVER = """
import multiprocessing, os, signal, sys, time

def core(parent_is_killed_first):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print(os.getpid(), flush=True)
    from airflow_arcadia.runtime.vllm_patches.parent_death import die_with_parent
    if parent_is_killed_first:
        while os.getppid() == multiprocessing.parent_process().pid:
            time.sleep(0.01)
    print(die_with_parent(), flush=True)
    time.sleep(600)

if __name__ == "__main__":
    child = multiprocessing.get_context("fork").Process(target=core, args=(sys.argv[1] == "late",))
    child.start()
    child.join()
"""


@pytest.fixture
def start() -> Iterator[object]:
    servers: list[subprocess.Popen[str]] = []

    def started(when: str) -> tuple[subprocess.Popen[str], psutil.Process]:
        server = subprocess.Popen([sys.executable, "-c", SERVER, when], stdout=subprocess.PIPE, text=True)
        servers.append(server)
        assert server.stdout is not None
        return server, psutil.Process(int(server.stdout.readline()))

    yield started
    for server in servers:
        server.kill()
        server.wait()


def ended(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_a_killed_server_takes_its_engine_core_along(start):
    server, core = start("in time")
    assert f"parent, process {server.pid}" in server.stdout.readline()
    assert not ended(core)
    server.send_signal(signal.SIGKILL)
    wait_for(lambda: ended(core), 10, "the core's death")


def test_a_server_that_was_killed_before_the_patch_does_too(start):
    server, core = start("late")
    server.send_signal(signal.SIGKILL)
    wait_for(lambda: ended(core), 10, "the core's death")
