"""The documentation as the tests read it: pages, their code blocks, and Sphinx' extensions."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT

sys.path.append(str(ROOT / "docs" / "_extensions"))

NOT_RUN = "# not run by the tests: "
"""First line of a block that no test runs, with the reason after it."""
_FENCE = re.compile(r"^(```+|:::+)([^\n]*)\n(.*?)^\1$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One fenced block.

    :param language: the word after the fence; Sphinx' directives have it in braces.
    """

    page: Path
    line: int
    language: str
    text: str

    @property
    def reason_not_run(self) -> str | None:
        """Why no test runs it, if it says so."""
        first = self.text.partition("\n")[0]
        return first.removeprefix(NOT_RUN).strip() if first.startswith(NOT_RUN) else None

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def pages() -> list[Path]:
    """README and every page of the documentation."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks_of(page: Path) -> list[Block]:
    """The page's code blocks, without Sphinx' directives."""
    text = page.read_text(encoding="utf-8")
    found = [
        Block(page, text.count("\n", 0, match.start()) + 1, match[2].strip(), match[3])
        for match in _FENCE.finditer(text)
    ]
    return [block for block in found if not block.language.startswith("{")]


def blocks(*languages: str) -> list[Block]:
    """Every block in one of the languages."""
    return [block for page in pages() for block in blocks_of(page) if block.language in languages]
