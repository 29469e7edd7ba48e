"""Local processes as things with an identity: started, found again, ended, with nothing left.

A process is known by pid *and* start time, because pids come again. Everything a lease owns also carries
the lease's name in its environment, which children inherit and reparenting does not change: that is how
the grandchildren of a killed worker are still found.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from airflow_arcadia.exceptions import WorkerError

LEASE_VARIABLE = "ARCADIA_LEASE"
"""Environment variable that marks every process with the name of the lease that owns it."""
OWNED_VARIABLE = "ARCADIA_OWNED"
"""And with which of the lease's things it belongs to, as ``kind/name``."""

SHM_WAIT_S = 10.0
"""Seconds until shared memory that ended processes mapped counts as still in use."""
SHM = "/dev/shm/"  # noqa: S108 - where Linux keeps POSIX shared memory, not a temporary file of ours
_START_TOLERANCE_S = 0.05  # psutil rounds a start time to the kernel's clock tick, 1/100 s
_KILL_WAIT_S = 5.0  # after SIGKILL only the kernel's own cleaning up is left
_POLL_S = 0.05
_SHM_POLL_S = 0.2

_INHERITED = frozenset(
    {
        *("HOME", "USER", "LOGNAME", "SHELL", "LANG", "TZ", "TMPDIR", "LD_LIBRARY_PATH"),
        "FASTCHAT_WORKER_HEART_BEAT_INTERVAL",
        "ARCADIA_VLLM_PATCHES",
    }
)
_INHERITED_PREFIXES = (
    "LC_",
    "HF_",
    "TRANSFORMERS_",
    "TORCH",
    "VLLM_",
    "CUDA_",
    "NVIDIA_",
    "NCCL_",
    "GLOO_",
    "OMP_",
    "RAY_",
    "SSL_CERT_",
)
_INHERITED_SUFFIXES = ("_PROXY", "_CA_BUNDLE")
# Of a cluster that is not the worker's.
_KEPT_BACK = frozenset({"RAY_ADDRESS", "RAY_JOB_ID"})
_SECRET_NAME = re.compile(r"(^|_)(TOKEN|PASSWORD|SECRET|KEY|CREDENTIALS?)$", re.IGNORECASE)
"""Names of variables that hold a secret itself, not the path of a file with one."""
_WITH_PASSWORD = re.compile(r"^([a-z]+://)?[^/@]*@", re.IGNORECASE)


def worker_environment(env: Mapping[str, str], python: str) -> dict[str, str]:
    """The part of ``env`` that a worker needs; the rest stays with Airflow, its secrets first of all.

    A worker gets its secrets as files. Of what it inherits only a proxy's URL may hold one.

    :param python: the worker's Python; what lies beside it is found first on ``PATH``.
    """
    kept = {
        key: value
        for key, value in env.items()
        if key in _INHERITED
        or key.startswith(_INHERITED_PREFIXES)
        or key.upper().endswith(_INHERITED_SUFFIXES)
    }
    path = [str(Path(python).parent), *filter(None, [env.get("PATH")])]
    kept |= {"PATH": os.pathsep.join(path), "PYTHONUNBUFFERED": "1"}
    return {k: v for k, v in kept.items() if k not in _KEPT_BACK and not _SECRET_NAME.search(k)}


def ray_environment(env: Mapping[str, str]) -> dict[str, str]:
    """The part of a worker's environment that Ray's own processes may have.

    Everybody's tasks on the Ray cluster inherit it and can read it in ``/proc``: no secret, and no proxy
    whose URL has a password.
    """
    return {
        key: value
        for key, value in env.items()
        if not _SECRET_NAME.search(key)
        and not (key.upper().endswith("_PROXY") and _WITH_PASSWORD.match(value))
    }


def mark(lease: str, owned: str) -> dict[str, str]:
    """Environment that marks a process and all it starts as part of ``owned`` (kind/name) of ``lease``."""
    # Ray and vLLM rename their processes; without SPT_NOENV the new title overwrites the environment.
    return {LEASE_VARIABLE: lease, OWNED_VARIABLE: owned, "SPT_NOENV": "1"}


@dataclass(frozen=True)
class ProcessRef:
    """One process, safe against a pid that came again.

    :param started_at: seconds since the epoch, as the kernel has it.
    """

    pid: int
    started_at: float


def spawn(
    argv: Sequence[str], *, env: Mapping[str, str], log_path: Path, cwd: Path | None = None
) -> ProcessRef:
    """Start a process in its own session, its output appended to ``log_path``; it outlives its parent.

    Raises :class:`WorkerError` when the program cannot be started.
    """
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with log_path.open("ab") as log:
        try:
            process = subprocess.Popen(
                list(argv),
                env=dict(env),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        except OSError as error:
            raise WorkerError(
                f"{argv[0]} cannot be started: {error}.",
                what_to_do="Check that the path exists and may be executed.",
            ) from error
    started_at = _start_time(process.pid) or time.time()
    # Popen would reap a child that has ended when it is collected itself: exit_code() is asked later.
    process.returncode = 0
    return ProcessRef(process.pid, started_at)


def is_alive(ref: ProcessRef) -> bool:
    """Whether that very process runs; a zombie is dead, and so is a stranger with its pid."""
    started = _start_time(ref.pid)
    return started is not None and abs(started - ref.started_at) <= _START_TOLERANCE_S


def exit_code(ref: ProcessRef) -> int | None:
    """How it ended, where this process is its parent and has not been told yet; else None.

    Negative for a signal, as in :attr:`subprocess.Popen.returncode`.
    """
    with contextlib.suppress(ChildProcessError, OSError):
        pid, status = os.waitpid(ref.pid, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
    return None


def find_marked(lease: str, owned: str | None = None) -> list[psutil.Process]:
    """Every process whose environment says that it is part of ``owned``, or of anything of the lease."""
    return [process for process in psutil.process_iter() if _is_marked(process, lease, owned)]


def end_marked(lease: str, owned_prefix: str = "", *, grace_s: float) -> list[str]:
    """End every process marked as part of what the lease owns, without any record of it. Idempotent.

    SIGTERM goes to those that :func:`spawn` started, so that they can end their own in order. After
    ``grace_s`` seconds SIGKILL goes to whatever is still marked. Returns what is left, as text.

    :param owned_prefix: only what is marked as a kind/name that begins so.
    """
    leaders: dict[str, ProcessRef | None] = {}
    for process in find_marked(lease):
        with contextlib.suppress(psutil.Error, OSError):
            owned = process.environ().get(OWNED_VARIABLE, "")
            if not owned.startswith(owned_prefix):
                continue
            leaders.setdefault(owned, None)
            if os.getsid(process.pid) == process.pid and not _has_marked_parent(process, lease):
                leaders[owned] = ProcessRef(process.pid, process.create_time())
    left: list[str] = []
    for owned in sorted(leaders, reverse=True):  # workers before the Ray cluster they run on
        left += end(leaders[owned], lease, owned or None, grace_s=grace_s)
    return left


def end(ref: ProcessRef | None, lease: str, owned: str | None = None, *, grace_s: float) -> list[str]:
    """End a process and every other one with the same mark. Idempotent.

    SIGTERM goes to the leader alone, so that it can end its own in order. After ``grace_s`` seconds, or
    as soon as the leader is gone, SIGKILL goes to its group and to whatever is still marked. Returns what
    is there nevertheless, as text.
    """
    if ref is not None and is_alive(ref):
        _signal(ref.pid, signal.SIGTERM)
        _wait(lambda: not is_alive(ref), grace_s)
    if ref is not None and (is_alive(ref) or not psutil.pid_exists(ref.pid)):
        # The group keeps the leader's number until its last member is gone, so it cannot be a stranger's.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(ref.pid, signal.SIGKILL)
    for process in find_marked(lease, owned):
        _signal(process.pid, signal.SIGKILL)
    _wait(lambda: not (ref is not None and is_alive(ref)) and not find_marked(lease, owned), _KILL_WAIT_S)
    left = [f"process {process.pid} ({_name(process)})" for process in find_marked(lease, owned)]
    if ref is not None and is_alive(ref) and not left:
        left.append(f"process {ref.pid}")
    return left


def shm_files(pids: Iterable[int]) -> set[str]:
    """Files under /dev/shm that these processes map, as paths."""
    # By inode: a named semaphore is mapped under a temporary name, which is gone once it has its own.
    with os.scandir(SHM) as entries:
        names = {str(entry.inode()): entry.path for entry in entries}
    found: set[str] = set()
    for pid in pids if names else ():
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
                if SHM in line and (path := names.get(line.split(maxsplit=5)[4])):
                    found.add(path)
    return found


def remove_unmapped_shm(paths: Iterable[str], *, wait_s: float = 0.0) -> list[str]:
    """Unlink those of ``paths`` that lie in /dev/shm and that no living process maps; returns the rest.

    :param wait_s: seconds that the processes that map them may take to end: an engine's rank, which is Ray's
        process, lives on for a moment when its engine is gone.
    """
    wanted = {path for path in paths if path.startswith(SHM) and "/" not in path.removeprefix(SHM)}

    def all_removed() -> bool:
        for path in wanted - shm_files(psutil.pids()):
            Path(path).unlink(missing_ok=True)
        return not any(Path(path).exists() for path in wanted)

    if wanted:
        # A look reads what every process maps.
        _wait(all_removed, wait_s, poll_s=_SHM_POLL_S)
    return sorted(path for path in wanted if Path(path).exists())


def tail(path: Path, lines: int = 20) -> list[str]:
    """The last lines of a text file, oldest first; empty when there is none."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 200 * max(lines, 1)))
            return file.read().decode("utf-8", "replace").splitlines()[-lines:]
    except FileNotFoundError:
        return []


def _start_time(pid: int) -> float | None:
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return None


def _is_marked(process: psutil.Process, lease: str, owned: str | None) -> bool:
    try:
        environ = process.environ()
        if environ.get(LEASE_VARIABLE) != lease or owned not in {None, environ.get(OWNED_VARIABLE)}:
            return False
        return process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, OSError):
        return False


def _has_marked_parent(process: psutil.Process, lease: str) -> bool:
    parent = process.parent()
    return parent is not None and _is_marked(parent, lease, None)


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.Error:
        return "ended meanwhile"


def _signal(pid: int, sign: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, sign)


def _wait(condition: Callable[[], bool], timeout_s: float, *, poll_s: float = _POLL_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(poll_s)
