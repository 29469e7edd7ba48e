"""What the troubleshooting pages quote is what the code says."""

from __future__ import annotations

import re

import pytest

from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "troubleshooting" / "local.md").read_text(encoding="utf-8")
OF_OTHERS = {
    "libnuma.so.1: cannot open shared object file",
    "No working C++ compiler found",
    "Python.h: No such file",
    "No available memory for the cache blocks",
    "larger than the maximum number of tokens that can be stored in KV cache",
    "out of memory",
    "unrecognized arguments",
}
"""Errors of the loader, of a compiler, of PyTorch, vLLM and argparse."""


def our_texts() -> str:
    """The package's source with adjacent string literals joined, and what is formatted replaced by "…"."""
    source = "\n".join(
        path.read_text(encoding="utf-8") for path in sorted((ROOT / "airflow_arcadia").rglob("*.py"))
    )
    joined = re.sub(r'" ?"|"\s*\n\s*f?"', "", source)
    return re.sub(r"\{[^{}\n]*\}", "…", joined)


TEXTS = our_texts()


def quoted() -> list[str]:
    """What the first column of the tables quotes."""
    cells = re.findall(r"^\| (.*?) \|", PAGE, re.MULTILINE)
    return [text for cell in cells for text in re.findall(r"`([^`]+)`", cell)]


@pytest.mark.parametrize("text", [text for text in quoted() if text not in OF_OTHERS])
def test_an_error_that_is_explained_can_happen(text: str):
    assert text in TEXTS
