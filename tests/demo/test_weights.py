"""The demo's model: heads are added so that two ranks can share them, and every answer stays the same."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.engine  # torch, which only the worker's environment has
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def checked(worker_python: str) -> dict[str, Any]:
    """What the check saw; it needs torch, which only the worker's environment has."""
    command = [worker_python, "-m", "tests.demo.padding_check"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    return dict(json.loads(told.stdout.splitlines()[-1]))


def test_zero_heads_change_no_logit(checked: dict[str, Any]) -> None:
    assert checked["padded"] < 1e-6


def test_heads_that_are_not_zero_would_change_them(checked: dict[str, Any]) -> None:
    assert checked["control"] > 0.1


def test_nine_query_heads_on_three_become_twelve_on_four(checked: dict[str, Any]) -> None:
    assert checked["rows"] == 12 * 16
    assert checked["shape"] == [12 * 16, 9 * 16]
