"""Files that a real engine left in /dev/shm, beside those of tests that run at the same time."""

from __future__ import annotations

import os

import psutil

from airflow_arcadia.processes import LEASE_VARIABLE, SHM, shm_files

STAND_INS = ("psm_standin", "psm_life")
"""How names of the stand-ins' files begin: they are never unlinked, and their own tests look at them."""


def files() -> set[str]:
    """Names of all files in /dev/shm."""
    return set(os.listdir(SHM))


def new_files(before: set[str], lease: str, *, stand_ins: tuple[str, ...] = STAND_INS) -> list[str]:
    """Names of files that were not there before, except those of others.

    A file is another's when a stand-in made it, or when a process of another lease or a pytest process maps
    it. A file that nothing maps, and one that a rank on Ray maps, count.
    """
    found = {name for name in files() - before if not name.startswith(stand_ins)}
    if found:
        others = [process.pid for process in psutil.process_iter() if _is_anothers(process, lease)]
        found -= {path.removeprefix(SHM) for path in shm_files(others)}
    return sorted(found & files())


def _is_anothers(process: psutil.Process, lease: str) -> bool:
    try:
        marked = process.environ().get(LEASE_VARIABLE)
        if marked is not None:
            return marked != lease
        return any(
            word.startswith("[pytest-xdist") or word.endswith("pytest") for word in process.cmdline()[:3]
        )
    except psutil.Error:
        return False
