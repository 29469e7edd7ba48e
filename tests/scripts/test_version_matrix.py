"""The version matrix: which tests it runs, and which versions the package says it supports."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import tomllib

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture
def matrix(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import version_matrix

    yield version_matrix
    for name in ("version_matrix", "environments"):
        sys.modules.pop(name, None)


def test_it_runs_what_make_test_fast_runs(matrix):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    recipe = re.search(r'^test-fast:.*\n.*-m "([^"]+)"', makefile, re.MULTILINE)
    assert recipe
    assert recipe[1] == matrix.UNIT_TESTS


def test_the_classifiers_name_the_pythons_that_it_runs(matrix):
    prefix = "Programming Language :: Python :: 3."
    claimed = {text.removeprefix(prefix) for text in PROJECT["classifiers"] if text.startswith(prefix)}
    run = {python.removeprefix("3.") for python, _ in matrix.PARTS.values()}
    assert claimed <= run
    assert min(claimed, key=int) == PROJECT["requires-python"].removeprefix(">=3.")


def test_the_extras_that_it_installs_are_those_without_an_engine(matrix):
    assert set(matrix.EXTRAS.split(",")) == set(PROJECT["optional-dependencies"]) - {"worker"}
