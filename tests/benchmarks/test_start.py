"""What a start is measured by."""

import os
import subprocess
import sys
import uuid

from benchmarks.start import Start

BUSY = "import os, time\nwhile sum(os.times()[:2]) < 0.5: pass\nprint(flush=True); time.sleep(600)"


def test_the_cpu_time_of_a_start_is_that_of_its_processes_and_of_no_other():
    lease = f"bench-{uuid.uuid4().hex}"
    command = [sys.executable, "-c", BUSY]
    with subprocess.Popen(
        command, env=os.environ | {"ARCADIA_LEASE": lease}, stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            assert 0.4 <= Start.since(0.0, lease).cpu_seconds < 2.0
            assert Start.since(0.0, f"{lease}-other").cpu_seconds == 0
        finally:
            process.kill()
