"""The engine's threads give way to the server's."""

import os
import subprocess
import sys
import threading

from airflow_arcadia.runtime.priority import NICENESS, lower

THREADS = (
    "import threading, time; threading.Thread(target=time.sleep, args=(600,)).start(); print(1, flush=True)"
)


def priorities(pid: int) -> set[int]:
    return {os.getpriority(os.PRIO_PROCESS, int(thread)) for thread in os.listdir(f"/proc/{pid}/task")}


def test_every_thread_of_the_process_gets_the_lower_priority_and_no_other_process_does():
    with subprocess.Popen([sys.executable, "-c", THREADS], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
        lower(child.pid)
        lower(child.pid)
        assert priorities(child.pid) == {NICENESS}
        assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == before
        child.kill()
