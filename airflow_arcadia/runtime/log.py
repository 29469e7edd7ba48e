"""The worker's own lines in its log."""

from __future__ import annotations

PREFIX = "arcadia: "


def say(text: str) -> None:
    """Write one line to the worker's log."""
    print(f"{PREFIX}{text}", flush=True)
