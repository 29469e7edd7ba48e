"""Measure what a batch costs. ``make bench`` runs this; ARGS are passed on.

  throughput        SmolLM2 and the tiny model beside vLLM offline, run-batch and Ray Data LLM
  tiny, smollm2     one of the two
  prefix            ordering="prefix" against the input's order
  client            rows a second of the batch engine alone, on a mock engine
  resume            how soon a job of 1 M rows that is 99 % done goes on
  memory_growth     peak memory with 10 k and 1 M small rows
  memory_in_flight  peak memory with rows of 256 KiB and 4 MiB
  start             launch to ready: process and pod beside a bare vLLM server

Without a name all of them run. Figures go to benchmarks/results.json, and those of --quick, which only
proves that everything runs, to var/bench/quick.json.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import client, memory, prefix, report, start, throughput
from benchmarks.results import QUICK_PATH, ROOT, WORKER_PYTHON, Results
from benchmarks.workloads import SMOLLM2, TINY, Workload

THROUGHPUT = ("smollm2", "tiny")


@dataclass(frozen=True)
class Options:
    """What the command line asks for.

    :param rounds: counted rounds; None takes each benchmark's own number.
    :param quick: few rows and one round: proves that everything runs, measures nothing.
    :param ways: of the throughput and the start; None measures all.
    """

    rounds: int | None = None
    quick: bool = False
    ways: tuple[str, ...] | None = None

    def rounds_or(self, usual: int) -> int:
        """Counted rounds of a benchmark whose usual number is this."""
        return self.rounds or (1 if self.quick else usual)


Bench = Callable[[Path, Results, Options], None]


def _throughput(workload: Workload) -> Bench:
    def run(folder: Path, results: Results, options: Options) -> None:
        throughput.measure(
            workload,
            folder,
            results,
            rounds=options.rounds_or(workload.rounds),
            ways=options.ways or throughput.WAYS,
            row_count=workload.ray_batch if options.quick else None,
        )

    return run


def _prefix(folder: Path, results: Results, options: Options) -> None:
    prefix.measure(folder, results, rounds=options.rounds_or(3), groups=4 if options.quick else prefix.GROUPS)


def _client(folder: Path, results: Results, options: Options) -> None:
    count = 2000 if options.quick else client.ROWS
    client.measure_ceiling(folder, results, rounds=options.rounds_or(5), row_count=count)


def _resume(folder: Path, results: Results, options: Options) -> None:
    client.measure_resume(folder, results, row_count=20_000 if options.quick else client.RESUMED_ROWS)


def _memory_growth(folder: Path, results: Results, options: Options) -> None:
    small, large = (1000, 20_000) if options.quick else (memory.SMALL, memory.LARGE)
    memory.measure_growth(folder, results, small=small, large=large)


def _memory_in_flight(folder: Path, results: Results, options: Options) -> None:
    memory.measure_in_flight(folder, results, total_bytes=(64 if options.quick else 1024) * memory.MIB)


def _start(folder: Path, results: Results, options: Options) -> None:
    start.measure(folder, results, rounds=options.rounds_or(5), ways=options.ways or start.WAYS)


BENCHES: dict[str, Bench] = {
    "smollm2": _throughput(SMOLLM2),
    "tiny": _throughput(TINY),
    "prefix": _prefix,
    "client": _client,
    "resume": _resume,
    "memory_growth": _memory_growth,
    "memory_in_flight": _memory_in_flight,
    "start": _start,
}


def chosen(names: Sequence[str]) -> list[str]:
    """The benchmarks of these names, in the order in which they run; all without a name."""
    wanted = {each for name in names for each in (THROUGHPUT if name == "throughput" else (name,))}
    return [name for name in BENCHES if not wanted or name in wanted]


def prepare(names: Sequence[str]) -> None:
    """Make what these benchmarks need and ``make setup`` does not make."""
    for workload in (SMOLLM2, TINY):
        if workload.name in names and not workload.model.exists():
            command = [WORKER_PYTHON, "-m", workload.made_by, str(workload.model)]
            subprocess.run(command, check=True, cwd=ROOT)
    if set(THROUGHPUT) & set(names):
        command = [sys.executable, str(ROOT / "scripts" / "environments.py"), "ray-data"]
        subprocess.run(command, check=True, cwd=ROOT)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmarks that the command line names, and print what they recorded."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="one of the above; default: all")
    parser.add_argument("--rounds", type=int, help="counted rounds of each")
    parser.add_argument("--quick", action="store_true", help="few rows, one round")
    parser.add_argument("--ways", type=lambda text: tuple(text.split(",")), help="for example offline,task")
    parser.add_argument("--keep", action="store_true", help="keep rows, outputs and logs")
    given = parser.parse_args(arguments)
    if unknown := set(given.names) - {"throughput", *BENCHES}:
        parser.error(f"unknown benchmark {', '.join(sorted(unknown))}; choose from {', '.join(BENCHES)}")
    # As Ctrl-C: everything that was started is ended.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    names = chosen(given.names)
    prepare(names)
    results = Results(QUICK_PATH) if given.quick else Results()
    options = Options(given.rounds, given.quick, given.ways)
    for name in names:
        began = time.monotonic()
        print(f"== {name}", flush=True)
        _run(BENCHES[name], results, options, keep=given.keep)
        print(f"== {name} took {time.monotonic() - began:.0f} s", flush=True)
    print(report.render(results.read()))
    if not given.quick:
        report.write_readme(results.read())


def _run(bench: Bench, results: Results, options: Options, *, keep: bool) -> None:
    folder = Path(tempfile.mkdtemp(prefix="arcadia-bench-"))
    try:
        bench(folder, results, options)
    except BaseException:
        print(f"logs are kept in {folder}", file=sys.stderr)
        raise
    if keep:
        print(f"kept in {folder}")
    else:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
