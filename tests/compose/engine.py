"""A container engine that really runs containers, and the words it is driven by."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PROBE_IMAGE = "localhost/arcadia-test-probe"
# Without systemd podman needs other words than its defaults: a cgroup manager, a log of events, and an OCI
# runtime that takes this kernel's cgroups.
_PODMAN_WITHOUT_SYSTEMD = """\
[containers]
default_ulimits = ["nofile=20000:20000", "nproc=4096:4096"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "{runtime}"
"""
_HEALTH_INTERVAL_S = 2.0


class EngineError(Exception):
    """A command of the engine failed; its last lines say why."""


@dataclass(frozen=True)
class Engine:
    """Docker or podman with a compose of its own.

    :param name: the program.
    :param compose: the words that compose is started by.
    :param env: its environment.
    """

    name: str
    compose: Sequence[str]
    env: Mapping[str, str] = field(repr=False)

    def run(self, *words: str, timeout_s: float = 600, env: Mapping[str, str] | None = None) -> str:
        """What ``podman …`` or ``docker …`` prints. Raises :class:`EngineError`."""
        return _run([self.name, *words], {**self.env, **(env or {})}, timeout_s)

    def has_image(self, image: str) -> bool:
        """Whether the image is here already."""
        with contextlib.suppress(EngineError):
            self.run("image", "inspect", image, timeout_s=60)
            return True
        return False

    @contextlib.contextmanager
    def health_checks(self) -> Iterator[None]:
        """Let health checks run: podman leaves the clock of them to systemd, which need not be there."""
        if self.name != "podman" or Path("/run/systemd/system").is_dir():
            yield
            return
        ended = threading.Event()

        def check() -> None:
            while not ended.wait(_HEALTH_INTERVAL_S):
                with contextlib.suppress(EngineError, subprocess.TimeoutExpired):
                    for container in self.run("ps", "--quiet", timeout_s=60).split():
                        with contextlib.suppress(EngineError):  # it has no check, or is not healthy yet
                            self.run("healthcheck", "run", container, timeout_s=60)

        thread = threading.Thread(target=check, name="health-checks")
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


@functools.cache
def find_engine() -> Engine | str:
    """The engine to test with, or why there is none: each candidate is asked to run a container."""
    reasons = []
    for name in ("docker", "podman"):
        if shutil.which(name) is None:
            reasons.append(f"{name} is not installed")
            continue
        env = _environment(name)
        compose = _compose(name, env)
        if compose is None:
            reasons.append(f"{name} has no compose")
            continue
        engine = Engine(name, compose, env)
        try:
            _run_one_container(engine)
        except (EngineError, subprocess.TimeoutExpired) as error:
            reasons.append(f"{name} runs no container: {str(error).strip().splitlines()[-1]}")
            continue
        return engine
    return "; ".join(reasons)


def _environment(name: str) -> dict[str, str]:
    env = dict(os.environ)
    systemd = Path("/run/systemd/system").is_dir()
    if name == "podman" and not systemd and "CONTAINERS_CONF" not in env:
        runtime = next((found for found in ("runc", "crun") if shutil.which(found)), "runc")
        file = Path(tempfile.gettempdir()) / f"arcadia-test-containers-{os.getuid()}.conf"
        file.write_text(_PODMAN_WITHOUT_SYSTEMD.format(runtime=runtime), encoding="utf-8")
        env["CONTAINERS_CONF"] = str(file)
    return env


def _compose(name: str, env: Mapping[str, str]) -> list[str] | None:
    """The words of a compose that works with the engine."""
    beside = Path(sys.executable).with_name("podman-compose")
    candidates = {
        "docker": [["docker", "compose"]],
        "podman": [[str(beside)], ["podman-compose"]],
    }[name]
    for words in candidates:
        with contextlib.suppress(EngineError, OSError, subprocess.TimeoutExpired):
            _run([*words, "version"], env, 60)
            return words
    return None


def _run_one_container(engine: Engine) -> None:
    """Make an image of this machine's ``true`` and the libraries it needs, and run it."""
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "probe.tar"
        archive.write_bytes(_tar_of(shutil.which("true") or "/bin/true"))
        engine.run("import", str(archive), PROBE_IMAGE, timeout_s=120)
    engine.run("run", "--rm", PROBE_IMAGE, "/probe", timeout_s=120)


def _tar_of(program: str) -> bytes:
    """An archive with the program as ``/probe``, and its shared libraries where its loader finds them."""
    ldd = shutil.which("ldd") or "ldd"
    listed = subprocess.run([ldd, program], capture_output=True, text=True, check=False).stdout
    libraries = re.findall(r"(/\S+) \(0x", listed)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", dereference=True) as archive:
        archive.add(os.path.realpath(program), "probe")
        for library in libraries:
            archive.add(library, library.lstrip("/"))
    return packed.getvalue()


def _run(command: Sequence[str], env: Mapping[str, str], timeout_s: float) -> str:
    done = subprocess.run(
        command,
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout_s,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode:
        last = "\n".join([*done.stdout.splitlines()[-20:], *done.stderr.splitlines()[-40:]])
        raise EngineError(f"{' '.join(command[:4])} … ended with {done.returncode}:\n{last}")
    return done.stdout
