"""A server with an engine core of the worst kind: it ignores SIGTERM, outlives the server, unlinks nothing.

``STAND_IN`` is what the server does once its core is up, one after the other: ``report JSON`` to its
supervisor, ``exit N``, ``kill`` itself; then it serves.
"""

import os
import signal
import subprocess
import sys
import time

CORE = """
import mmap, os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
path = f"/dev/shm/psm_standin{os.getpid()}"
with open(path, "w+b") as file:
    file.truncate(4096)
    mapped = mmap.mmap(file.fileno(), 4096)
print(path, flush=True)
time.sleep(600)
"""


def main() -> None:
    core = subprocess.Popen([sys.executable, "-c", CORE], start_new_session=True, stdout=subprocess.PIPE)
    path = core.stdout.readline().decode().strip()
    print("core", core.pid, path, flush=True)
    for command in os.environ["STAND_IN"].split(";"):
        does, _, argument = command.partition(" ")
        if does == "exit":
            os.unlink(path)
            core.kill()
            sys.exit(int(argument))
        if does == "kill":
            os.unlink(path)
            os.kill(os.getpid(), signal.SIGKILL)
        if does == "report":
            os.write(int(os.environ["ARCADIA_SUPERVISOR_FD"]), argument.encode() + b"\n")
    time.sleep(600)


if __name__ == "__main__":
    main()
