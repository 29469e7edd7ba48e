"""How the engine core waits for its ranks."""

import subprocess
from pathlib import Path

import pytest

WAIT = """
import threading, zmq
from airflow_arcadia.runtime.vllm_patches import core_wait
from vllm.distributed.device_communicators.shm_broadcast import SpinCondition
core_wait.wait_for_notifications(few=10_000)
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
@pytest.mark.parametrize(("longest", "writes"), [(600_000, True), (1, False)], ids=["a notification", "none"])
def test_a_notification_wakes_the_core_and_so_does_time(
    worker_python: str, tmp_path: Path, longest: int, writes: bool
):
    script = WAIT.format(folder=tmp_path, longest=longest, writes=writes)
    words = [worker_python, "-c", script]
    told = subprocess.run(words, capture_output=True, text=True, check=True, timeout=120)
    assert told.stdout.splitlines()[-1] == "woken"
