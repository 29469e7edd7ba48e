"""vLLM plug-in: what each process of a worker's engine does before anything else.

Entry point group ``vllm.general_plugins`` (vLLM's plug-in system), which vLLM loads in every one of its
processes. Outside a worker it does nothing.
"""

from __future__ import annotations

import os
import sys

from airflow_arcadia.processes import OWNED_VARIABLE

SWITCH_INTERVAL_S = 0.0002
"""How long a thread waits for Python's lock before it asks for it. By default 5 ms, counted anew whenever the
lock changes hands: in the engine's core the thread that spins and the one that sends answers hand it to each
other every millisecond, and the thread that takes requests in waited until the engine had nothing left to do.
Requests then ran one at a time (measured: 1,024 rows in 20 to 60 s instead of 5 s)."""


def register() -> None:
    """Called by vLLM, in each process once or more."""
    if OWNED_VARIABLE in os.environ:
        print("LAB plugin", os.getpid(), flush=True)
        sys.setswitchinterval(float(os.environ.get("VLLM_LAB_SW", SWITCH_INTERVAL_S)))
