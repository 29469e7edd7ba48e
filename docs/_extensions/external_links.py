"""Lists links to other sites in ``external-links.txt`` beside the pages: a build reaches no network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    found: dict[str, set[str]] = {}

    def collect(app: Sphinx, doctree: nodes.document, page: str) -> None:
        for node in doctree.findall(nodes.reference):
            if str(node.get("refuri", "")).startswith(("http://", "https://")):
                found.setdefault(node["refuri"], set()).add(page)

    def write(app: Sphinx, error: Exception | None) -> None:
        if error is None:
            lines = [f"{link}  ({', '.join(sorted(pages))})\n" for link, pages in sorted(found.items())]
            Path(app.outdir, "external-links.txt").write_text("".join(lines), encoding="utf-8")

    app.connect("doctree-resolved", collect)
    app.connect("build-finished", write)
    return {"parallel_read_safe": True, "parallel_write_safe": False}
