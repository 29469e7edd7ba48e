"""Start ``python -m airflow_arcadia.reap`` beside the component of Airflow that a listener runs in.

The component waits for its listeners, so the work is done by a process of its own.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time

_TIMEOUT_S = 300.0

log = logging.getLogger(__name__)


def start_reaping(*arguments: str) -> None:
    """Start the process with these arguments, and log what it says. Returns at once.

    It takes seconds to start. A run that is cleared meanwhile reserves its leases anew: those are not its.
    """
    arguments = (*arguments, "--reserved-before", f"{time.time():.3f}")
    threading.Thread(target=_reap, args=(arguments,), name="arcadia-reap", daemon=True).start()


def _reap(arguments: tuple[str, ...]) -> None:
    argv = [sys.executable, "-m", "airflow_arcadia.reap", *arguments]
    try:
        done = subprocess.run(
            argv,
            env=dict(os.environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
            start_new_session=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("What is left of the run was not ended; the reaper does it: %s", error)
        return
    for line in (done.stdout + (done.stderr if done.returncode else "")).splitlines():
        log.info("%s", line)
