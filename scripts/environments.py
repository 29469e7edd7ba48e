#!/usr/bin/env python3
"""Set up the two environments and the local models, from nothing or from an interrupted try.

``scripts/environments.py setup`` makes ``.venv`` (Airflow, tests, linters) and ``.venv-worker`` (vLLM, Ray,
FastChat) from the locks in ``requirements/``; ``--demo`` adds the demo's model. ``ray-data`` makes a folder
with what Ray Data needs, for the benchmark, and ``docs`` one with Sphinx, beside ``.venv`` alone. Standard
library only: nothing else is there yet. An environment's stamp is written last: without one it is made anew,
with one that no longer fits it is brought up to date, and with a fitting one nothing happens.
"""

import argparse
import contextlib
import ctypes
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VAR = ROOT / "var"
PYTHON_VERSION = (3, 11)
# Ray wants the same patch level on all its nodes, and the locks are resolved for this minor version.
WANTED = ".".join(map(str, PYTHON_VERSION))
UV = "uv>=0.9,<1"
OLDEST_UV = (0, 7)  # the first minor version with --torch-backend in all of its releases
STAMP = "arcadia-setup.stamp"
CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

AIRFLOW = (".venv", "requirements/airflow.txt")
WORKER = (".venv-worker", "requirements/worker.txt")
# With vLLM's CUDA build: made in the image of docker-compose.yaml's gpu profile alone.
WORKER_CUDA = (None, "requirements/worker-cuda.txt")
# A folder, and the module (run by the worker's Python) that makes it, whole or not at all.
TINY_MODEL = ("var/models/tiny-llama", "tests.tiny_model")
DEMO_MODEL = ("var/models/SmolLM2-135M-Instruct", "demo.model")
# For the benchmark alone, beside the worker's environment and not in it.
RAY_DATA = ("var/bench/ray-data", "requirements/ray-data.txt")
# Sphinx, for `make docs` alone: it reads the docstrings in Airflow's environment, and is not part of it.
DOCS = ("var/docs/packages", "requirements/docs.txt")

PIP_TO_UV = {
    "PIP_INDEX_URL": "UV_DEFAULT_INDEX",
    "PIP_EXTRA_INDEX_URL": "UV_INDEX",
    "PIP_CERT": "SSL_CERT_FILE",
}
"""What pip was told about registries and uv does not read: one setting is enough for both."""

PIP_QUIETLY = {"PIP_USER": "0", "PIP_ROOT_USER_ACTION": "ignore"}


class SetupError(Exception):
    """Why it cannot go on, and what to do."""


# The base executable: an activated virtual environment may be the one that is about to be made anew.
PROBE = """
import json, os, sqlite3, ssl, sys
python = os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)
print(json.dumps([sys.version_info[:2], python]))
"""


def find_python(candidates):
    """Absolute path of the first usable Python 3.11. Raises SetupError naming what was found instead."""
    seen = []
    for candidate in dict.fromkeys(filter(None, candidates)):
        try:
            answer = subprocess.run(
                [candidate, "-c", PROBE], capture_output=True, text=True, timeout=30, check=True
            ).stdout
        except (OSError, subprocess.SubprocessError) as error:
            last = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1:]
            seen.append(f"{candidate}: not usable ({' '.join(last)})")
            continue
        version, path = json.loads(answer)
        if tuple(version) == PYTHON_VERSION:
            return path
        seen.append(f"{candidate}: Python {'.'.join(map(str, version))}")
    raise SetupError(
        f"Python {WANTED} is needed and was not found. Looked at: {'; '.join(seen) or 'nothing'}.\n"
        f"Install it (with its ssl and sqlite3 modules), or name one: "
        f"PYTHON=/path/to/python{WANTED} make setup"
    )


def find_uv(python, env):
    """Path of a uv that will do: the one on PATH, else one of our own under ``var/uv``."""
    own = VAR / "uv" / "bin" / "uv"
    for candidate in (shutil.which("uv"), str(own)):
        if candidate and uv_version(candidate) >= OLDEST_UV:
            return candidate
    say("uv: not found, installed with pip into var/uv")
    VAR.mkdir(exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=VAR, prefix=".uv-"))
    # --target leaves the Python alone, also one that is "externally managed" (PEP 668).
    command = [python, "-m", "pip", "install", "--quiet", "--upgrade", "--target", str(draft), UV]
    if subprocess.run(command, env={**env, **PIP_QUIETLY}, check=False).returncode:
        shutil.rmtree(draft, ignore_errors=True)
        raise SetupError(
            f"{python} -m pip could not install uv (its message is above).\n"
            f"Install pip for that Python, or uv itself so that it is on PATH, and run again."
        )
    shutil.rmtree(VAR / "uv", ignore_errors=True)
    draft.rename(VAR / "uv")
    return str(own)


def uv_version(uv):
    """(major, minor), or (0, 0) for one that does not run."""
    try:
        said = subprocess.check_output([uv, "--version"], text=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return (0, 0)
    found = re.search(r"(\d+)\.(\d+)", said)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def tool_environment(env):
    """The environment uv and pip run in: bytecode is wanted, and uv is told what pip was told."""
    kept = {key: value for key, value in env.items() if key not in {"PYTHONDONTWRITEBYTECODE", "VIRTUAL_ENV"}}
    return {**{uv: kept[pip] for pip, uv in PIP_TO_UV.items() if kept.get(pip)}, **kept}


def torch_arguments(find_links):
    """Where uv finds torch's CPU build: a wheel folder that has one, else PyTorch's own index.

    ``find_links`` is ``PIP_FIND_LINKS``: folders or URLs, separated by white space as pip has it.
    """
    places = find_links.split()
    arguments = [word for place in places for word in ("--find-links", place)]
    if any(list(Path(place.replace("file://", "", 1)).glob("torch-*.whl")) for place in places):
        return arguments
    return [*arguments, "--torch-backend=cpu"]


def fingerprint(lock):
    """Two lines: where the environment is, and a hash of all that it is made from."""
    # Not at the top: an older Python gets as far as finding a newer one.
    import tomllib  # noqa: PLC0415

    # Of pyproject.toml only what is installed: a linter's setting is no reason to install again.
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    installed = json.dumps([project["project"], project["build-system"]], sort_keys=True)
    version = (ROOT / "airflow_arcadia" / "__init__.py").read_text(encoding="utf-8")
    parts = [(ROOT / lock).read_text(encoding="utf-8"), installed, version]
    return f"{ROOT}\n{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()}\n"


def what_to_do(stamped, wanted):
    """``nothing``, ``update`` or ``anew``, given the stamp found (None without one) and the one wanted."""
    if stamped == wanted:
        return "nothing"
    # Without a stamp an earlier try was interrupted: what it left may be half a package. And programs of an
    # environment name its folder: one that was moved cannot be mended by installing.
    moved = stamped is not None and stamped.splitlines()[:1] != wanted.splitlines()[:1]
    return "anew" if stamped is None or moved else "update"


def make_environment(folder, lock, python, env):
    """Make or update one environment; nothing to do when its stamp fits."""
    place = ROOT / folder
    stamp, wanted = place / STAMP, fingerprint(lock)
    # A Python that was removed leaves a dangling link.
    usable = stamp.exists() and (place / "bin/python").exists()
    step = what_to_do(stamp.read_text(encoding="utf-8") if usable else None, wanted)
    if step == "nothing":
        return
    started = time.monotonic()
    uv = find_uv(python, env)
    if step == "anew":
        say(f"{folder}: made from {lock} …")
        remove(place)
        run([uv, "venv", "--quiet", "--no-python-downloads", "--python", python, str(place)], env)
    else:
        say(f"{folder}: brought up to date with {lock} …")
        stamp.unlink()
    target = ["--quiet", "--python", str(place / "bin/python"), "--compile-bytecode"]
    torch = torch_arguments(env.get("PIP_FIND_LINKS", "")) if lock == WORKER[1] else []
    # sync installs what the lock lists and nothing else: the lock is complete, and resolving again would
    # bring back what the overrides took out.
    run([uv, "pip", "sync", *target, *torch, str(ROOT / lock)], env)
    run([uv, "pip", "install", *target, "--no-deps", "--editable", str(ROOT)], env)
    if lock == WORKER[1]:
        # vLLM itself imports without its kernels, and a server would only end when it starts.
        run([str(place / "bin/python"), "-c", "import vllm._C"], env)
    draft = stamp.with_suffix(".tmp")
    draft.write_text(wanted, encoding="utf-8")
    draft.rename(stamp)
    say(f"{folder}: ready after {time.monotonic() - started:.0f} s")


def make_model(folder, module, env):
    """Make one model folder with the worker's Python, unless it is there."""
    place = ROOT / folder
    if place.exists():
        return
    say(f"{folder}: made by {module} …")
    for draft in place.parent.glob(".draft-*"):  # of a try that was interrupted
        shutil.rmtree(draft)
    python = str(ROOT / WORKER[0] / "bin/python")
    run([python, "-m", module, str(place)], {**env, "TQDM_DISABLE": "1"})


def make_folder_of_packages(folder, lock, environment, env):
    """Install what ``lock`` lists into a folder for an environment's ``PYTHONPATH``, unless that was done."""
    place = ROOT / folder
    stamp, wanted = place / STAMP, (ROOT / lock).read_text(encoding="utf-8")
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return
    say(f"{folder}: made from {lock} …")
    python = str(ROOT / environment / "bin/python")
    remove(place)
    target = ["--quiet", "--python", python, "--target", str(place), "--no-deps"]
    run([find_uv(python, env), "pip", "install", *target, "--requirement", str(ROOT / lock)], env)
    stamp.write_text(wanted, encoding="utf-8")


def has_libnuma():
    """Whether the library is there that vLLM's kernels are linked against."""
    try:
        ctypes.CDLL("libnuma.so.1")
    except OSError:
        return False
    return True


def has_compiler():
    """Whether the C++ compiler is there with which PyTorch builds kernels when the worker starts."""
    command = (os.environ.get("CXX") or "g++").split()  # it may have options
    return bool(shutil.which(command[0]))


def has_headers():
    """Whether this Python's headers are there, which those kernels include."""
    return Path(sysconfig.get_path("include"), "Python.h").exists()


# What the worker needs of the system: the check, Debian's package, and Fedora's.
SYSTEM = (
    (has_libnuma, "libnuma1", "numactl-libs"),
    (has_compiler, "g++", "gcc-c++"),
    (has_headers, f"python{WANTED}-dev", f"python{WANTED}-devel"),
)


def require_system(env, *, needs=SYSTEM, is_root=lambda: os.geteuid() == 0, which=shutil.which):
    """Make sure that vLLM's worker finds what it needs of the system, before anything is downloaded.

    It is installed where this is root on Debian. Raises SetupError saying how to install it elsewhere.
    """
    missing = [(debian, fedora) for check, debian, fedora in needs if not check()]
    if not missing:
        return
    debian, fedora = (" ".join(names) for names in zip(*missing, strict=True))
    if not (is_root() and which("apt-get")):
        raise SetupError(
            "vLLM's worker needs packages of the system that are missing. Nothing was downloaded.\n"
            f"Install them (Debian, Ubuntu: apt-get install {debian}; Fedora, RHEL: dnf install {fedora}) "
            "and run again."
        )
    say(f"{debian}: not found, installed with apt-get")
    apt_install(debian.split(), env)


def apt_install(packages, env):
    """Install packages of Debian's. Raises :class:`SetupError`."""
    # Images of Debian come without the lists of packages.
    run(["apt-get", "update", "--quiet"], env)
    run(["apt-get", "install", "--yes", "--quiet", "--no-install-recommends", *packages], env)


def offer_chromium(env, *, is_root=lambda: os.geteuid() == 0, which=shutil.which):
    """Install the browser of the pages' tests where this is root on Debian; elsewhere say what they lack.

    Nothing else needs it: without a browser those tests are skipped.
    """
    if env.get("ARCADIA_CHROMIUM") or any(map(which, CHROMIUM)):
        return
    if is_root() and which("apt-get"):
        say("chromium: not found, installed with apt-get")
        with contextlib.suppress(SetupError):
            apt_install(["chromium"], env)
            return
    say("chromium: not found, so that the tests of the pages are skipped (Debian: apt-get install chromium)")


def setup(demo, env):
    """Everything that is missing."""
    python = this_python(env)
    require_system(env)
    with only_one():
        for folder, lock in (AIRFLOW, WORKER):
            make_environment(folder, lock, python, env)
        for folder, module in (TINY_MODEL, DEMO_MODEL) if demo else (TINY_MODEL,):
            make_model(folder, module, env)


def docs(env):
    """What ``make docs`` needs: Airflow's environment, and Sphinx in a folder beside it."""
    python = this_python(env)
    with only_one():
        make_environment(*AIRFLOW, python, env)
        make_folder_of_packages(*DOCS, AIRFLOW[0], env)


def this_python(env):
    """Path of the Python for the environments; this program starts again with it where that is another."""
    python = find_python([env.get("PYTHON"), f"python{WANTED}", "python3", sys.executable])
    if os.path.realpath(sys.executable) != python:
        os.execve(python, [python, *sys.argv], env)  # noqa: S606 - the same program, with that Python
    return python


def lock(env):
    """Resolve the locks again from ``requirements/*.in``."""
    uv = find_uv(sys.executable, env)
    common = ["--quiet", "--python-version", WANTED, "--no-emit-index-url", "--no-emit-find-links"]
    overrides = ["--override", "requirements/worker-overrides.txt"]
    for (_, output), more in (
        (AIRFLOW, []),
        (WORKER, [*torch_arguments(env.get("PIP_FIND_LINKS", "")), *overrides]),
        (WORKER_CUDA, ["--override", "requirements/worker-cuda-overrides.txt"]),
        (DOCS, []),
    ):
        source = output.replace(".txt", ".in")
        # The command is not noted in the file: it would name this machine's folders.
        run([uv, "pip", "compile", *common, "--no-header", *more, "--output-file", output, source], env)


@contextlib.contextmanager
def only_one():
    """Two set-ups at once would take each other's half-made environment for a broken one."""
    VAR.mkdir(exist_ok=True)
    with (VAR / "setup.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say("another set-up is running, waiting for it …")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def remove(place):
    """Remove a folder, its stamp first."""
    (place / STAMP).unlink(missing_ok=True)
    if place.exists():
        shutil.rmtree(place)


def run(command, env):
    """Run one command. Raises SetupError when it fails; its own message is on the terminal already."""
    status = subprocess.run(command, cwd=ROOT, env=env, check=False).returncode
    if status:
        raise SetupError(f"This command ended with status {status}: {' '.join(command)}")


def say(text):
    """One line of progress."""
    print(f"set-up: {text}", flush=True)


def main():
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("command", choices=["setup", "lock", "ray-data", "docs", "chromium"])
    parser.add_argument("--demo", action="store_true", help="also make the demo's model")
    options = parser.parse_args()
    env = tool_environment(os.environ)
    try:
        if options.command == "lock":
            lock(env)
        elif options.command == "chromium":
            offer_chromium(env)
        elif options.command == "ray-data":
            with only_one():
                make_folder_of_packages(*RAY_DATA, WORKER[0], env)
        elif options.command == "docs":
            docs(env)
        else:
            setup(options.demo, env)
    except SetupError as error:
        print(f"set-up: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("set-up: interrupted; run it again and it goes on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
