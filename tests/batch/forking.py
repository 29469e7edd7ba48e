"""Processes that start within milliseconds: they are forked from one that has imported the batch engine."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Sequence

from airflow_arcadia.batch.__main__ import main

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([__name__, "tests.batch.chaos.attempt"])


def run_command(arguments: Sequence[str]) -> None:
    """What ``python -m airflow_arcadia.batch`` does with these arguments; nothing is printed."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(nowhere, stream.fileno())
    sys.exit(main(arguments))
