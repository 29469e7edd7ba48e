"""``benchmarks/results.json``: each bench replaces its own keys and keeps the others'."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PATH = Path(__file__).with_name("results.json")


def record(**figures: Any) -> None:
    """Write figures under their keys; a mapping's keys are replaced one by one."""
    held: dict[str, Any] = json.loads(PATH.read_text(encoding="utf-8")) if PATH.exists() else {}
    for key, value in figures.items():
        held[key] = {**held.get(key, {}), **value} if isinstance(value, dict) else value
    PATH.write_text(json.dumps(held, indent=2, sort_keys=True) + "\n", encoding="utf-8")
