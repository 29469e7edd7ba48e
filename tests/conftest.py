"""What many tests need: the worker's environment, a model, real servers on free ports, leases in a folder."""

from __future__ import annotations

import os
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_arcadia.lease import Identity, Lease
from airflow_arcadia.lease_store import LeaseStore
from tests.selection import (
    pytest_collection_modifyitems,
    pytest_sessionfinish,
    pytest_sessionstart,
    pytest_xdist_make_scheduler,
)

__all__ = [
    "pytest_collection_modifyitems",
    "pytest_sessionfinish",
    "pytest_sessionstart",
    "pytest_xdist_make_scheduler",
]

ROOT = Path(__file__).resolve().parents[1]


def wait_for(condition: Callable[[], Any], timeout_s: float, what: str) -> Any:
    """Poll for evidence; fails naming what never came."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError(f"waited {timeout_s:.0f} s for {what}")


def unique_identity() -> Identity:
    """An identity that no other test has, in this process or in one beside it.

    Processes are found by the name of their lease: two tests with one name would end each other's.
    """
    return Identity("dag", uuid.uuid4().hex, "worker")


@pytest.fixture(scope="session")
def worker_python() -> str:
    """Python of the worker's environment, as ``make setup`` makes it."""
    path = Path(os.environ.get("ARCADIA_WORKER_PYTHON", ROOT / ".venv-worker" / "bin" / "python"))
    assert path.exists(), "run make setup first: the worker's environment is missing"
    return str(path)


@pytest.fixture(scope="session")
def tiny_model(worker_python: str) -> str:
    """Folder of the tiny model, as ``make setup`` makes it."""
    folder = ROOT / "var" / "models" / "tiny-llama"
    if not folder.exists():
        subprocess.run([worker_python, str(ROOT / "tests" / "tiny_model.py"), str(folder)], check=True)
    return str(folder)


@pytest.fixture
def store(tmp_path: Path) -> LeaseStore:
    """Leases in a folder of this test."""
    return LeaseStore(tmp_path / "state")


@pytest.fixture
def lease(store: LeaseStore) -> Iterator[Lease]:
    """A reserved lease; what is still marked with it at the end of the test is ended."""
    from airflow_arcadia.processes import end

    reserved = store.reserve(unique_identity(), time.time())
    yield reserved
    end(None, reserved.name, grace_s=0)
