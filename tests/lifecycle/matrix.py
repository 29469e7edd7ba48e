"""``python -m tests.lifecycle.matrix``: run the cases, print the table, and fail on a red cell."""

from __future__ import annotations

import argparse
import fnmatch
import random
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.lifecycle.cases import BY_NET_S, CASES, Case
from tests.lifecycle.stage import Run, Stage, lifecycle_stage, wait

RUN_S, STEP_S = 240.0, 120.0
_REAP_EVERY_S = 20.0


@dataclass(frozen=True)
class Result:
    """What became of one case.

    :param state: of the run.
    :param ended_s: seconds from the event, or from the start without one, to the run's end.
    :param free_s: seconds from the run's end until nothing was left; None: never.
    :param left: what was still there when the time was over.
    """

    case: Case
    state: str
    ended_s: float = 0.0
    free_s: float | None = None
    left: Sequence[str] = ()
    rows: int = 0
    remark: str = ""
    run_id: str = ""
    broken: bool = False

    @property
    def leaked(self) -> bool:
        return self.free_s is None or self.free_s > self.case.gone_s

    @property
    def wrong_colour(self) -> bool:
        return self.state != self.case.truth

    @property
    def red(self) -> bool:
        wrong_rows = self.case.rows is not None and self.rows != self.case.rows
        return self.broken or self.leaked or self.wrong_colour or wrong_rows

    def row(self) -> str:
        """One line of the table."""
        state = self.state if not self.wrong_colour else f"**{self.state}** ({self.case.truth}: WRONG)"
        free = "never" if self.free_s is None else f"{self.free_s:.0f}"
        free = f"**{free}** (limit {self.case.gone_s:.0f}): {', '.join(self.left)}" if self.leaked else free
        rows = str(self.rows) + ("" if self.case.rows in {None, self.rows} else f" (**{self.case.rows}**)")
        return f"| {self.case.name} | {state} | {self.ended_s:.0f} | {free} | {rows} | {self.remark} |"


HEADER = (
    "| case | run's state | s from the event to its end | s from its end until nothing is left "
    "| rows | remarks |\n|---|---|---|---|---|---|"
)


def run_case(stage: Stage, case: Case) -> Result:
    """One run, from its start until everything of it is gone, or the time is over."""
    dag_id = f"life_{case.dag}"
    run = stage.start(dag_id, case.conf)
    watching = threading.Event()
    watcher = threading.Thread(target=_note_shared_memory, args=(run, watching), daemon=True)
    watcher.start()
    try:
        return _observe(run, case)
    except Exception as error:  # noqa: BLE001 - a case that breaks is a red cell, not the end of the table
        return Result(
            case,
            "?",
            left=stage.leftovers(run),
            remark=f"{type(error).__name__}: {error}",
            run_id=run.run_id,
            broken=True,
        )
    finally:
        watching.set()
        watcher.join()


def _observe(run: Run, case: Case) -> Result:
    began = time.monotonic()
    if case.when is not None:
        wait(lambda: case.when(run), STEP_S, f"{case.name} to reach its step")  # type: ignore[misc]
    if case.event is not None:
        case.event(run)
        began = time.monotonic()
    remark = ""
    if case.freed_first:
        freed = _free(run, BY_NET_S, ignore="lease directory")
        remark = f"free {freed[0]:.0f} s after the event" if freed[0] is not None else f"left: {freed[1]}"
        if freed[0] is None:
            return Result(case, "?", left=freed[1], remark=remark, run_id=run.run_id, broken=True)
    if case.restored is not None:
        case.restored(run)
    state = wait(lambda: (s := run.state) in {"success", "failed"} and s, RUN_S, "the run's end")
    ended = time.monotonic()
    free_s, left = _free(run, case.gone_s)
    return Result(case, state, ended - began, free_s, left, run.rows(), remark, run.run_id)


def _free(run: Run, limit_s: float, ignore: str = "") -> tuple[float | None, list[str]]:
    began = time.monotonic()
    while True:
        left = [text for text in run.stage.leftovers(run) if text != ignore]
        if not left:
            return time.monotonic() - began, []
        if time.monotonic() - began > limit_s:
            return None, left
        time.sleep(0.3)


def _note_shared_memory(run: Run, end: threading.Event) -> None:
    while not end.wait(0.5):
        run.stage.note_shared_memory(run)


def run_all(stage: Stage, cases: Iterable[Case], jobs: int) -> list[Result]:
    """The cases that may run side by side, then those that touch all of Airflow, one by one."""
    cases = list(cases)
    done = threading.Event()
    reaper = threading.Thread(target=_reap, args=(stage, done), daemon=True)
    reaper.start()
    results: list[Result] = []

    def one(case: Case) -> None:
        result = run_case(stage, case)
        results.append(result)
        print(result.row(), flush=True)

    print(HEADER, flush=True)
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(one, [case for case in cases if not case.alone]))
    for case in cases:
        if case.alone:
            one(case)
    done.set()
    reaper.join()
    return results


def _reap(stage: Stage, done: threading.Event) -> None:
    """The reaper, more often than its DAG runs: it is the net that some cases need."""
    while not done.wait(_REAP_EVERY_S):
        stage.reap()


def write_table(path: Path, results: Iterable[Result]) -> None:
    """Put the rows into the table of a document, in place of earlier ones of the same cases."""
    before, marker, rest = path.read_text().partition("<!-- matrix -->\n")
    old, end, after = rest.partition("<!-- /matrix -->")
    rows = {line.split("|")[1].strip(): line for line in old.splitlines()[2:]}
    rows |= {result.case.name: result.row() for result in results}
    table = "\n".join([HEADER, *(rows[name] for name in sorted(rows))])
    path.write_text(f"{before}{marker}{table}\n{end}{after}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.lifecycle.matrix", description=__doc__)
    parser.add_argument("--only", default="*", help="cases whose names match, e.g. 'kill.*,clear.*'")
    parser.add_argument("--jobs", type=int, default=4, help="cases at once")
    parser.add_argument("--soak", type=int, default=0, metavar="N", help="that many random cases instead")
    parser.add_argument("--seed", type=int, default=None, help="of the random cases")
    parser.add_argument("--folder", type=Path, help="where Airflow and the leases live; kept afterwards")
    parser.add_argument("--table", type=Path, help="file whose table gets the rows, e.g. docs/lifecycle.md")
    options = parser.parse_args()
    chosen = [c for c in CASES if any(fnmatch.fnmatch(c.name, p) for p in options.only.split(","))]
    if options.soak:
        seed = options.seed if options.seed is not None else time.time_ns() % 100_000
        print(f"seed {seed}")
        chosen = random.Random(seed).choices([c for c in chosen if not c.alone], k=options.soak)
    with tempfile.TemporaryDirectory(prefix="life", ignore_cleanup_errors=True) as temporary:
        folder = options.folder or Path(temporary)
        with lifecycle_stage(folder.resolve(), parallelism=2 * options.jobs) as stage:
            results = run_all(stage, chosen, options.jobs)
    if options.table:
        write_table(options.table, results)
    leaks, wrong = sum(r.leaked for r in results), sum(r.wrong_colour for r in results)
    for result in results:
        if result.red:
            print(f"RED: {result.case.name} ({result.run_id}) {result.remark}")
    print(f"{len(results)} paths, {leaks} leaks, {wrong} wrong colours")
    return int(any(result.red for result in results))


if __name__ == "__main__":
    sys.exit(main())
