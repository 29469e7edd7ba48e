"""When the loopback cluster's own tests run, and what a run of them proves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.selection import LOOPBACK, ROOT, chain_of, covers, fingerprint, own_tests_wanted


@pytest.mark.parametrize(
    ("arguments", "stamped", "wanted"),
    [
        (["tests"], None, True),
        (["tests"], "before", True),
        (["tests"], "now", False),
        ([str(LOOPBACK)], "now", True),
        ([f"{LOOPBACK}/test_volumes.py::test_x"], "now", True),
        (["tests/kubernetes"], "now", False),
    ],
)
def test_the_loopback_clusters_own_tests_run_when_it_changed_or_when_they_are_named(
    arguments: list[str], stamped: str | None, wanted: bool
):
    assert own_tests_wanted(arguments, stamped, "now") is wanted


def test_any_change_of_a_file_and_any_new_name_changes_the_fingerprint(tmp_path: Path):
    folder, lock = tmp_path / "cluster", tmp_path / "lock.txt"
    folder.mkdir()
    lock.write_text("a==1")
    (folder / "one.py").write_text("1")
    seen = {fingerprint(folder, lock)}
    (folder / "one.py").write_text("2")
    seen.add(fingerprint(folder, lock))
    (folder / "one.py").rename(folder / "two.py")
    seen.add(fingerprint(folder, lock))
    lock.write_text("a==2")
    seen.add(fingerprint(folder, lock))
    assert len(seen) == 4
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "two.pyc").write_bytes(b"")
    assert fingerprint(folder, lock) in seen


def test_only_a_run_of_all_its_files_counts_as_tested():
    files = ["test_a.py", "test_b.py"]
    assert not covers(["tests/loopback_cluster/test_a.py::test_1"], files)
    assert covers(["tests/loopback_cluster/test_a.py::test_1", "x/test_b.py::test_2[3]@engine"], files)


@pytest.mark.parametrize(
    ("file", "chain"),
    [
        ("tests/engine/test_hang.py", "engine"),
        ("tests/e2e/test_scheduled_runs.py", "engine"),
        ("tests/lifecycle/test_matrix.py", "airflow"),
        ("tests/test_lease.py", None),
    ],
)
def test_engines_and_whole_airflows_have_a_chain_each(file: str, chain: str | None):
    assert chain_of(file) == chain


@pytest.mark.slow
def test_a_test_that_uses_a_cluster_carries_its_marker_and_one_beside_it_does_not():
    words = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "cluster", "tests/kubernetes"]
    told = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "tests/kubernetes/test_leases.py::" in told
    assert "tests/kubernetes/test_pod_status.py::" not in told
