"""``make bench``: all of it, then a table. Figures are in ``benchmarks/results.json``."""

from __future__ import annotations

import json
import subprocess
import sys

from benchmarks.results import PATH


def main() -> None:
    """Run every bench in a process of its own, and print what they recorded."""
    for module in ("benchmarks.client", "benchmarks.engine"):
        subprocess.run([sys.executable, "-m", module], check=True)
    figures = json.loads(PATH.read_text(encoding="utf-8"))
    print(f"\n{'way':<16}{'rows/s':>10}{'of offline':>12}")
    for name, rate in figures["rows_per_s"].items():
        print(f"{name:<16}{rate:>10.1f}{figures['ratio_to_offline'].get(name, 1.0):>12.3f}")
    print(f"\nclient ceiling        {figures['client_ceiling_rows_per_s']} rows/s")
    print(f"peak memory           {figures['peak_rss_mib']} MiB")
    print(f"resume at 99 % of 1 M {figures['resume_seconds']} s")
    print(f"prefix order          {figures['prefix_speedup']} x")
    print(f"on                    {figures['versions']}")


if __name__ == "__main__":
    main()
