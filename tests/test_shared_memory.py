"""Whose files in /dev/shm are whose, where several tests have some."""

import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_arcadia.processes import LEASE_VARIABLE
from tests import shared_memory

MAP = """
import mmap, sys
with open(sys.argv[1], "r+b") as file:
    kept = mmap.mmap(file.fileno(), 4096)
print("mapped", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def path() -> Iterator[Path]:
    """A file that tests of real engines take for a stand-in's."""
    file = Path(f"/dev/shm/psm_standin_test{os.getpid()}")
    file.write_bytes(bytes(4096))
    yield file
    file.unlink(missing_ok=True)


def found(path: Path, **options: tuple[str, ...]) -> bool:
    return path.name in shared_memory.new_files(shared_memory.files() - {path.name}, "mine", **options)


def test_a_file_that_nothing_maps_is_left_unless_a_stand_in_made_it(path: Path):
    assert found(path, stand_ins=())
    assert not found(path)
    assert path.name not in shared_memory.new_files(shared_memory.files(), "mine", stand_ins=())


@pytest.mark.parametrize(("lease", "left"), [("mine", True), ("another", False), (None, True)])
def test_a_file_counts_unless_a_process_of_another_lease_maps_it(path: Path, lease: str | None, left: bool):
    env = os.environ | ({LEASE_VARIABLE: lease} if lease else {})
    command = [sys.executable, "-c", MAP, str(path)]
    with subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"mapped\n"
        assert found(path, stand_ins=()) is left
        process.communicate()


def test_a_file_of_a_test_that_runs_at_the_same_time_does_not_count(path: Path):
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 4096):
        assert not found(path, stand_ins=())
