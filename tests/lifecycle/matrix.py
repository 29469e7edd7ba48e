"""``python -m tests.lifecycle.matrix``: run the cases, print the table, and fail on a red cell."""

from __future__ import annotations

import argparse
import fnmatch
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from tests.conftest import ROOT
from tests.lifecycle.cases import BY_NET_S, CASES, ENDED, RUNNING, Case, Outage
from tests.lifecycle.cluster_cases import CASES as CLUSTER_CASES
from tests.lifecycle.cluster_stage import cluster_stage
from tests.lifecycle.stage import Run, Stage, lifecycle_stage, wait

RUN_S, STEP_S = 300.0, 300.0
_REAP_EVERY_S = 300.0  # as its DAG runs
REAL_MODEL = ROOT / "var" / "models" / "tiny-llama"


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


class Together:
    """Lets cases with one outage meet: the last to come does what there is to do, and all go on.

    :param parties: how many cases there are; one that breaks leaves the others.
    """

    def __init__(self, parties: int) -> None:
        self._parties = parties
        self._arrived: dict[str, int] = {}
        self._done: set[str] = set()
        self._changed = threading.Condition()

    def meet(self, step: str, action: Callable[[], None]) -> None:
        """Wait until every case that is left has come to the step and the action is done."""
        with self._changed:
            self._arrived[step] = self._arrived.get(step, 0) + 1
            while step not in self._done:
                if self._arrived[step] >= self._parties:
                    try:
                        action()
                    finally:
                        self._done.add(step)
                        self._changed.notify_all()
                    return
                self._changed.wait()

    def leave(self) -> None:
        """Go without the others: the next steps do not wait for this case."""
        with self._changed:
            self._parties -= 1
            self._changed.notify_all()


class StepMissed(Exception):
    """The run was not seen at the step of the case's event, as when Airflow is too slow: no verdict."""


def run_case(stage: Stage, case: Case, together: Together | None = None, *, again: bool = False) -> Result:
    """One run, from its start until everything of it is gone, or the time is over.

    :param together: meets the other cases of its outage.
    :param again: whether an earlier run of the case missed its step.
    """
    together = together or Together(1)
    run = stage.start(f"life_{case.dag}", case.conf)
    try:
        return _observe(run, case, together)
    except StepMissed as error:
        if case.outage is None and not again:
            _free(run, case.gone_s)
            return replace(run_case(stage, case, again=True), remark="the first attempt missed its step")
        together.leave()
        return Result(case, "?", left=stage.leftovers(run), remark=str(error), run_id=run.run_id, broken=True)
    except Exception as error:  # noqa: BLE001 - a case that breaks is a red cell, not the end of the table
        together.leave()
        return Result(
            case,
            "?",
            left=stage.leftovers(run),
            remark=f"{type(error).__name__}: {error}",
            run_id=run.run_id,
            broken=True,
        )


def _observe(run: Run, case: Case, together: Together) -> Result:
    stage, outage = run.stage, case.outage
    began = time.monotonic()
    if case.when is not None:
        _reach(run, case.when)
    if case.event is not None:
        case.event(run)
        began = time.monotonic()
    if outage is not None:
        together.meet("begin", lambda: outage.begin(stage))
        began = time.monotonic()
    remark = ""
    if case.freed_first:
        freed_s, left = _free(run, BY_NET_S, ignore="lease directory")
        if freed_s is None:
            raise TimeoutError(f"not free {BY_NET_S:.0f} s after the event: {', '.join(left)}")
        remark = f"free {freed_s:.0f} s after the event"
    if case.restored is not None:
        case.restored(run)
    if outage is not None and not outage.lasting:
        together.meet("end", lambda: outage.end(stage))
        run.release()
    if case.truth == RUNNING:
        result = Result(case, run.state, time.monotonic() - began, 0.0, (), run.rows(), remark, run.run_id)
    else:
        state = wait(lambda: (s := run.state) in ENDED and s, RUN_S, "the run's end")
        ended = time.monotonic()
        free_s, left = _free(run, case.gone_s)
        result = Result(case, state, ended - began, free_s, left, run.rows(), remark, run.run_id)
    if outage is not None and outage.lasting:
        together.meet("judged", lambda: outage.end(stage))
        wait(lambda: run.state in ENDED, RUN_S, "the end of the run after the outage")
    return result


def _reach(run: Run, step: Callable[[Run], bool]) -> None:
    """Wait for the step of the case's event. Raises :class:`StepMissed`."""
    deadline = time.monotonic() + STEP_S
    while True:
        ended = wait(lambda: run.state, 30, "the run's state") in ENDED
        try:
            wait(lambda: step(run), 5, "its step")
        except TimeoutError as error:
            if ended or time.monotonic() > deadline:
                raise StepMissed(f"Its step was not seen: {error}.") from error
        else:
            return


def _free(run: Run, limit_s: float, ignore: str = "") -> tuple[float | None, list[str]]:
    began = time.monotonic()
    while True:
        left = [text for text in run.stage.leftovers(run) if text != ignore]
        if not left:
            return time.monotonic() - began, []
        if time.monotonic() - began > limit_s:
            return None, left
        time.sleep(0.5)


def run_all(stage: Stage, cases: Iterable[Case], jobs: int) -> list[Result]:
    """The cases that may run side by side, then the outages, each with all of its cases at once."""
    cases = list(cases)
    done = threading.Event()
    reaper = threading.Thread(target=_reap, args=(stage, done), daemon=True)
    reaper.start()
    results: list[Result] = []

    def one(case: Case, together: Together | None = None) -> None:
        result = run_case(stage, case, together)
        results.append(result)
        print(result.row(), flush=True)

    print(HEADER, flush=True)
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(one, [case for case in cases if case.outage is None]))
    for group in outages(cases, jobs):
        together = Together(len(group))
        with ThreadPoolExecutor(len(group)) as pool:
            list(pool.map(partial(one, together=together), group))
    done.set()
    reaper.join()
    return results


def outages(cases: Iterable[Case], at_once: int) -> list[list[Case]]:
    """The cases that an outage happens to, by outage, at most so many of them at once."""
    by_outage: dict[Outage, list[Case]] = {}
    for case in cases:
        if case.outage is not None:
            by_outage.setdefault(case.outage, []).append(case)
    return [group[i : i + at_once] for group in by_outage.values() for i in range(0, len(group), at_once)]


def _reap(stage: Stage, done: threading.Event) -> None:
    """The reaper, as often as its DAG runs."""
    while not done.wait(_REAP_EVERY_S):
        stage.reap()


def write_tables(path: Path, results: Sequence[Result], *, whole: bool = False) -> None:
    """Put the rows into the tables of a document, of processes and of the cluster."""
    for name, in_cluster in (("matrix", False), ("cluster matrix", True)):
        if rows := [result for result in results if result.case.in_cluster is in_cluster]:
            write_table(path, rows, name, whole=whole)


def write_table(path: Path, results: Iterable[Result], name: str = "matrix", *, whole: bool = False) -> None:
    """Put the rows into the table of a document, in place of earlier ones of the same cases.

    :param name: in the comments around the table.
    :param whole: whether the results are all there are: rows of cases that are no more go.
    """
    before, marker, rest = path.read_text().partition(f"<!-- {name} -->\n")
    old, end, after = rest.partition(f"<!-- /{name} -->")
    rows = {} if whole else {line.split("|")[1].strip(): line for line in old.splitlines()[2:]}
    rows |= {result.case.name: result.row() for result in results}
    table = "\n".join([HEADER, *(rows[name] for name in sorted(rows))])
    path.write_text(f"{before}{marker}{table}\n{end}{after}")


def run_on_stages(chosen: Sequence[Case], jobs: int, folder: Path) -> list[Result]:
    """The cases with processes, those in the cluster, and those with the real engine, each on an Airflow."""
    results: list[Result] = []
    if in_cluster := [case for case in chosen if case.in_cluster]:
        with cluster_stage(folder / "cluster", parallelism=2 * jobs) as stage:
            results += run_all(stage, in_cluster, jobs)
    if simple := [case for case in chosen if not case.real and not case.in_cluster]:
        with lifecycle_stage(folder / "stand-in", parallelism=2 * jobs) as stage:
            results += run_all(stage, simple, jobs)
    if real := [case for case in chosen if case.real]:
        with lifecycle_stage(folder / "real", real_model=str(REAL_MODEL)) as stage:
            results += run_all(stage, real, jobs=1)
    return results


PLACES: dict[str, Sequence[Case]] = {"processes": CASES, "cluster": CLUSTER_CASES}


def choose(patterns: str, soak: int, seed: int, places: Iterable[str] = PLACES) -> list[Case]:
    """The cases that match, or that many of them at random.

    A random path never has the real engine: it takes a minute.

    :param places: keys of :data:`PLACES`.
    """
    everything = [case for place in places for case in PLACES[place]]
    matching = [c for c in everything if any(fnmatch.fnmatch(c.name, p) for p in patterns.split(","))]
    if not soak:
        return matching
    return random.Random(seed).choices([case for case in matching if not case.real], k=soak)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.lifecycle.matrix", description=__doc__)
    parser.add_argument("--only", default="*", help="cases whose names match, e.g. 'kill.*,clear.*'")
    parser.add_argument("--in", dest="places", choices=PLACES, action="append", help="by default in both")
    parser.add_argument("--jobs", type=int, default=6, help="cases at once")
    parser.add_argument("--soak", type=int, default=0, metavar="N", help="that many random cases instead")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 100_000, help="of the random cases")
    parser.add_argument("--folder", type=Path, help="where Airflow and the leases live; kept afterwards")
    parser.add_argument("--table", type=Path, help="file whose tables get the rows, e.g. docs/lifecycle.md")
    options = parser.parse_args()
    if options.soak:
        print(f"seed {options.seed}")
    chosen = choose(options.only, options.soak, options.seed, options.places or PLACES)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="life", ignore_cleanup_errors=True) as temporary:
        results = run_on_stages(chosen, options.jobs, (options.folder or Path(temporary)).resolve())
    if options.table:
        write_tables(options.table, results, whole=options.only == "*")
    leaks, wrong = sum(r.leaked for r in results), sum(r.wrong_colour for r in results)
    for result in results:
        if result.red:
            print(f"RED: {result.case.name} ({result.run_id}) {result.remark}")
    print(f"{(time.monotonic() - began) / 60:.0f} minutes")
    print(f"{len(results)} paths, {leaks} leaks, {wrong} wrong colours")
    return int(any(result.red for result in results))


if __name__ == "__main__":
    sys.exit(main())
