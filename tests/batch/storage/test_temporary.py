"""Temporary directories of killed processes are collected, those of living ones are not."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from airflow_arcadia.batch.storage.temporary import TemporaryDirectory

CODE = """
import os, sys
from airflow_arcadia.batch.storage.temporary import TemporaryDirectory
held = TemporaryDirectory()
(held.path / "rows").write_bytes(b"x" * 1000)
print(held.path, flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def tmpdir_of_this_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)


def holder() -> tuple["subprocess.Popen[str]", Path]:
    process = subprocess.Popen(
        [sys.executable, "-c", CODE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_what_a_killed_process_left_is_removed_by_the_next_one(tmp_path: Path):
    process, path = holder()
    assert path.parent == tmp_path
    process.kill()
    process.wait()
    assert (path / "rows").exists()
    mine = TemporaryDirectory()
    assert [found.name for found in tmp_path.iterdir()] == [mine.path.name]


def test_that_of_a_living_process_is_left_alone():
    process, path = holder()
    TemporaryDirectory().cleanup()
    assert (path / "rows").exists()
    process.kill()
    process.wait()


def test_one_that_is_not_locked_yet_is_left_alone_until_it_is_old(tmp_path: Path):
    other = tmp_path / "arcadia-batch-other"
    other.mkdir()
    TemporaryDirectory().cleanup()
    assert other.exists()
    os.utime(other, (1, 1))
    TemporaryDirectory().cleanup()
    assert not other.exists()


def test_it_is_removed_with_the_object(tmp_path: Path):
    held = TemporaryDirectory()
    held.cleanup()
    held.cleanup()
    assert not list(tmp_path.iterdir())
