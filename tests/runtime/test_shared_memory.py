"""An engine's shared memory: seen as soon as it appears, and left to Python's trackers where these can."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil

from airflow_arcadia.runtime.shared_memory import EngineSharedMemory, kill_all

ENGINE = """
import sys, time
from multiprocessing.shared_memory import SharedMemory
memory = SharedMemory(create=True, size=4096)
print(memory.name, flush=True)
time.sleep(600)
"""


def start() -> tuple[subprocess.Popen[str], Path]:
    """A process with shared memory that Python tracks, and the file."""
    engine = subprocess.Popen([sys.executable, "-c", ENGINE], stdout=subprocess.PIPE, text=True)
    assert engine.stdout is not None
    return engine, Path("/dev/shm") / engine.stdout.readline().strip()


def test_trackers_are_killed_last_so_that_they_remove_what_nobody_has_recorded():
    engine, file = start()
    tracker = psutil.Process(engine.pid).children()
    assert len(tracker) == 1
    assert file.exists()
    kill_all([*tracker, psutil.Process(engine.pid)])
    assert not file.exists()
    engine.wait()
    # Without its parent it is for init to reap: dead, it may still be listed.
    assert not tracker[0].is_running() or tracker[0].status() == psutil.STATUS_ZOMBIE


def test_a_look_is_due_as_soon_as_an_engines_file_appears(tmp_path: Path):
    memory = EngineSharedMemory(tmp_path / "record", look_s=3600)
    assert memory.due()
    memory.due()
    engine, file = start()
    try:
        assert memory.due()
        memory.look([psutil.Process(engine.pid)])
        assert str(file) in (tmp_path / "record").read_text()
    finally:
        engine.kill()
        engine.wait()
    assert memory.remove() == []
    assert not file.exists()
    assert not (tmp_path / "record").exists()
