"""Which tests run where: markers that follow from fixtures, and when the loopback cluster's own tests run.

:mod:`tests.conftest` imports these pytest hooks. They hold in one process and under pytest-xdist alike.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
LOOPBACK = ROOT / "tests" / "loopback_cluster"
STAMP = ROOT / "var" / "loopback-cluster.tested"
"""Holds the fingerprint of the loopback cluster whose own tests passed last in this checkout."""
REASON = "the loopback cluster has not changed since its own tests passed; make test-loopback runs them"

CLUSTER_FIXTURES = frozenset({"cluster", "loopback"})
CHAINS = {
    "engine": ("pytest.mark.engine", "pytest.mark.e2e"),
    "airflow": ("pytest.mark.airflow",),
}
"""Files with one of these marks run one after another in one process; each chain beside the others."""
_TESTED = pytest.StashKey[set[str]]()


def fingerprint(folder: Path = LOOPBACK, *others: Path) -> str:
    """Hash of all that decides whether the loopback cluster's own tests pass.

    :param others: files outside the folder; by default the lock, which names the Kubernetes client whose
        models the cluster validates by.
    """
    files = [p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    digest = hashlib.sha256()
    for path in [*sorted(files), *(others or (ROOT / "requirements" / "airflow.txt",))]:
        digest.update(f"{path.relative_to(ROOT) if path.is_relative_to(ROOT) else path.name}\0".encode())
        digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()


def own_tests_wanted(arguments: Sequence[str], stamped: str | None, now: str) -> bool:
    """Whether the loopback cluster's own tests run.

    They do when a path inside the folder is given, when the folder changed since they last passed here, and
    when they never ran here.

    :param arguments: paths and node ids that pytest was started with.
    :param stamped: fingerprint of the cluster that passed last; None when none did.
    :param now: its fingerprint now.
    """
    named = (Path(argument.split("::")[0]).resolve() for argument in arguments)
    return stamped != now or any(path.is_relative_to(LOOPBACK) for path in named)


def is_own_test(path: Path) -> bool:
    """Whether a test file tests the loopback cluster itself."""
    return path.is_relative_to(LOOPBACK)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what uses a cluster, keep engines apart, skip the loopback cluster's own tests where unneeded."""
    stamped = STAMP.read_text(encoding="utf-8") if STAMP.exists() else None
    wanted = own_tests_wanted(config.args, stamped, fingerprint())
    for item in items:
        if CLUSTER_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.cluster)
        if is_own_test(item.path) and not wanted:
            item.add_marker(pytest.mark.skip(reason=REASON))


@functools.cache
def chain_of(file: str) -> str | None:
    """The chain that a file, a path below the repository, belongs to; None for one that runs beside all."""
    text = (ROOT / file).read_text(encoding="utf-8")
    return next((chain for chain, marks in CHAINS.items() if any(mark in text for mark in marks)), None)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Schedule every file that starts engines in one process, and every one with only an Airflow in another.

    Two engines at once would wait for each other's memory, and each looks at /dev/shm; two Airflows take more
    than two cores. pytest-xdist's own groups (``--dist loadgroup``) have no effect with pytest 9.2, which
    keeps a test's id elsewhere.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ChainsInOneProcess(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return chain_of(nodeid.split("::", maxsplit=1)[0]) or nodeid

    return ChainsInOneProcess(config, log)


def pytest_sessionstart(session: pytest.Session) -> None:
    """Begin the list of the loopback cluster's own tests that passed."""
    session.config.stash[_TESTED] = set()
    session.config.pluginmanager.register(_Passed(session.config.stash[_TESTED]))


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Remember that the loopback cluster's own tests passed, once all of its files did."""
    config = session.config
    if exitstatus != 0 or hasattr(config, "workerinput") or config.option.keyword:
        return
    if covers(config.stash[_TESTED], (path.name for path in LOOPBACK.glob("test_*.py"))):
        STAMP.parent.mkdir(exist_ok=True)
        STAMP.write_text(fingerprint(), encoding="utf-8")


def covers(passed: Iterable[str], files: Iterable[str]) -> bool:
    """Whether tests of each file passed. ``passed`` are node ids."""
    return {node.split("::")[0].rpartition("/")[2] for node in passed} >= set(files)


class _Passed:
    """Collects the loopback cluster's own tests as they pass; under xdist in the controlling process."""

    def __init__(self, passed: set[str]) -> None:
        self._passed = passed

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Called for every report of a test."""
        if report.when == "call" and report.passed and is_own_test(ROOT / report.nodeid.split("::")[0]):
            self._passed.add(report.nodeid)
