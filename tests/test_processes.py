"""Processes with an identity: real ones, started, found again and ended."""

import os
import signal
import subprocess
import sys
from multiprocessing import get_context, shared_memory
from pathlib import Path

import psutil
import pytest

from airflow_arcadia.exceptions import WorkerError
from airflow_arcadia.processes import (
    ProcessRef,
    end,
    exit_code,
    find_marked,
    is_alive,
    mark,
    ray_environment,
    remove_unmapped_shm,
    shm_files,
    spawn,
    tail,
    worker_environment,
)
from tests.conftest import wait_for

LEASE = f"test-{os.getpid()}"
SLEEPER = "import time; time.sleep(600)"
# A child that ignores SIGTERM, in a session of its own, whose parent goes: as Ray's and vLLM's do.
ORPHAN_MAKER = f"""
import subprocess, sys
subprocess.Popen(
    [sys.executable, "-c", "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEPER}"],
    start_new_session=True,
)
"""


def start(code: str, tmp_path: Path, owned: str = "worker/w") -> ProcessRef:
    env = os.environ | mark(LEASE, owned)
    return spawn([sys.executable, "-c", code], env=env, log_path=tmp_path / "log")


@pytest.fixture(autouse=True)
def _nothing_left():
    yield
    end(None, LEASE, grace_s=0)


def test_a_process_is_ended_and_ending_it_again_is_right(tmp_path: Path):
    ref = start(SLEEPER, tmp_path)
    assert is_alive(ref)
    assert end(ref, LEASE, grace_s=5) == []
    assert not is_alive(ref)
    assert end(ref, LEASE, grace_s=5) == []


def test_a_stranger_with_the_same_pid_is_neither_alive_nor_ended(tmp_path: Path):
    ref = start(SLEEPER, tmp_path)
    stranger = ProcessRef(ref.pid, ref.started_at - 60)
    assert not is_alive(stranger)
    assert end(stranger, "another-lease", grace_s=0) == []
    assert is_alive(ref)


def test_grandchildren_that_were_reparented_and_ignore_sigterm_are_found_and_killed(tmp_path: Path):
    parent = start(ORPHAN_MAKER, tmp_path)
    orphan = wait_for(lambda: not is_alive(parent) and find_marked(LEASE), 10, "the orphan")[0]
    assert orphan.pid != parent.pid
    assert end(parent, LEASE, grace_s=0.2) == []
    assert not psutil.pid_exists(orphan.pid) or orphan.status() == psutil.STATUS_ZOMBIE


def test_ending_one_thing_of_a_lease_leaves_its_others(tmp_path: Path):
    worker = start(SLEEPER, tmp_path, "worker/w")
    cluster = start(SLEEPER, tmp_path, "ray_cluster/c")
    end(worker, LEASE, "worker/w", grace_s=5)
    assert not is_alive(worker)
    assert is_alive(cluster)
    assert [p.pid for p in find_marked(LEASE, "ray_cluster/c")] == [cluster.pid]


@pytest.mark.parametrize(("code", "expected"), [("raise SystemExit(3)", 3), ("import os; os.abort()", -6)])
def test_a_parent_learns_how_its_child_ended(code: str, expected: int, tmp_path: Path):
    ref = start(code, tmp_path)
    assert wait_for(lambda: exit_code(ref) or None, 10, "the exit code") == expected


def test_a_program_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(WorkerError, match="/nowhere/python"):
        spawn(["/nowhere/python"], env={}, log_path=tmp_path / "log")


def test_shared_memory_goes_once_nothing_maps_it():
    memory = shared_memory.SharedMemory(create=True, size=4096)
    path = f"/dev/shm/{memory.name}"
    assert path in shm_files([os.getpid()])
    assert remove_unmapped_shm([path]) == [path]
    memory.close()
    assert remove_unmapped_shm([path, "/etc/passwd", "/dev/shm/../etc/passwd"]) == []
    assert not Path(path).exists()
    assert Path("/etc/passwd").exists()


def test_a_named_semaphore_is_found_by_what_maps_it():
    held = get_context("spawn").Lock()
    path = f"/dev/shm/sem.{held._semlock.name.lstrip('/')}"
    assert Path(path).exists()
    assert path in shm_files([os.getpid()])
    assert remove_unmapped_shm([path]) == [path]


def test_the_tail_is_the_last_lines(tmp_path: Path):
    log = tmp_path / "log"
    assert tail(log) == []
    log.write_text("\n".join(map(str, range(1000))))
    assert tail(log, 3) == ["997", "998", "999"]


def test_a_worker_inherits_no_secret_of_airflows():
    env = {
        "AIRFLOW_CONN_ARCADIA": "secret",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": "secret",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "VLLM_API_KEY": "secret",
        "HF_TOKEN": "secret",
        "RAY_AUTH_TOKEN": "secret",
        "FASTCHAT_API_KEYS": "secret",
        "FASTCHAT_WORKER_HEART_BEAT_INTERVAL": "45",
        "ARCADIA_VLLM_PATCHES": "off",
        "HF_TOKEN_PATH": "/secrets/hf",
        "RAY_ADDRESS": "another:6379",
        "HF_HOME": "/models",
        "CUDA_VISIBLE_DEVICES": "0",
        "https_proxy": "http://proxy",
        "PATH": "/usr/bin",
    }
    assert worker_environment(env, "/venv/bin/python") == {
        "HF_HOME": "/models",
        "HF_TOKEN_PATH": "/secrets/hf",
        "FASTCHAT_WORKER_HEART_BEAT_INTERVAL": "45",
        "ARCADIA_VLLM_PATCHES": "off",
        "CUDA_VISIBLE_DEVICES": "0",
        "https_proxy": "http://proxy",
        "PATH": "/venv/bin:/usr/bin",
        "PYTHONUNBUFFERED": "1",
    }


def test_rays_processes_get_no_secret_and_no_proxys_password():
    env = {
        "HF_TOKEN": "secret",
        "https_proxy": "http://user:secret@proxy:3128",
        "HTTP_PROXY": "user:secret@proxy",
        "no_proxy": "localhost,10.0.0.0/8",
        "ALL_PROXY": "socks5://proxy:1080",
        "RAY_AUTH_TOKEN_PATH": "/secrets/token",
        "TOKENIZERS_PARALLELISM": "false",
    }
    kept = {"no_proxy", "ALL_PROXY", "RAY_AUTH_TOKEN_PATH", "TOKENIZERS_PARALLELISM"}
    assert ray_environment(env) == {name: env[name] for name in kept}


def test_sigterm_goes_to_the_leader_alone_first(tmp_path: Path):
    code = f"""
import os, signal, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "{SLEEPER}"])
def stop(*_):
    open({str(tmp_path / "order")!r}, "w").write(str(child.poll()))
    child.terminate(); child.wait(); sys.exit(0)
signal.signal(signal.SIGTERM, stop)
open({str(tmp_path / "ready")!r}, "w").close()
signal.pause()
"""
    ref = start(code, tmp_path)
    wait_for((tmp_path / "ready").exists, 10, "the handler")
    assert end(ref, LEASE, grace_s=10) == []
    assert (tmp_path / "order").read_text() == "None"  # its child still ran when it was told


def test_a_marked_process_is_not_found_by_another_lease():
    child = subprocess.Popen([sys.executable, "-c", SLEEPER], env=os.environ | mark(LEASE, "worker/w"))
    try:
        assert child.pid not in [p.pid for p in find_marked(LEASE + "-2")]
        assert child.pid in [p.pid for p in find_marked(LEASE)]
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
