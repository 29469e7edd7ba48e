"""Warm workers are claimed, shared and given back, whoever races whom; on real leases, with a fake worker."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from airflow_arcadia import warm
from airflow_arcadia.exceptions import ArcadiaError, LeaseError
from airflow_arcadia.launchers import warm as effects
from airflow_arcadia.launchers.teardown import teardown
from airflow_arcadia.launchers.warm import WarmWorkers, fit_for_a_run, fit_to_be_kept
from airflow_arcadia.lease import Identity, Lease
from airflow_arcadia.lease_store import LeaseStore
from airflow_arcadia.readiness import Observation, ProcessObservation
from airflow_arcadia.warm import Request
from airflow_arcadia.worker import WorkerHandle, WorkerStatus
from tests.conftest import wait_for

KEEP_S = 600.0
REQUEST = Request("0123456789abcdef", "tiny")
ALIVE = ProcessObservation(True)
READY = Observation(ALIVE, True, True, True, status=WorkerStatus.READY)


class Place:
    """Runs that share workers, on a clock of this test.

    :param seen: what a look at any worker sees.
    """

    def __init__(self, store: LeaseStore) -> None:
        self.store = store
        self.now = 1_000_000.0
        self.seen = READY
        self.ended: list[str] = []

    def workers(self) -> WarmWorkers:
        return WarmWorkers(self.store, look=lambda _: self.seen, end=self.end, clock=lambda: self.now)

    def end(self, name: str) -> Sequence[str]:
        self.ended.append(name)
        self.store.remove(name)
        return []

    def run(self, name: str, duration_s: float = 60.0) -> Lease:
        return self.store.reserve(Identity("dag", name, "worker"), self.now, duration_s)

    def claim(self, name: str, request: Request = REQUEST) -> Lease:
        run = self.run(name)
        self.workers().claim(run, request, KEEP_S)
        found = self.store.read(run.name)
        assert found is not None
        return found

    def launch(self, run: Lease) -> WorkerHandle:
        """What the run's tasks do between its claim and its work."""
        turn = self.workers().turn(run)
        assert turn is not None
        if not turn.launch:
            found = turn.handle(turn.lease.name)
            assert found is not None
            return found
        handle = WorkerHandle(turn.lease.name, turn.lease.name, "process", "http://w", "tiny", 1)
        self.workers().record(handle)
        return handle

    def give_back(self, run: Lease) -> list[str]:
        assert run.warm_name is not None
        return self.workers().give_back(run.name, [run.warm_name])

    def lease_of(self, run: Lease) -> Lease | None:
        assert run.warm_name is not None
        return self.store.read(run.warm_name)


@pytest.fixture
def place(store: LeaseStore) -> Place:
    return Place(store)


def test_the_next_run_adopts_the_worker_that_the_last_one_left(place: Place):
    first = place.claim("first")
    handle = place.launch(first)
    assert place.give_back(first) == []
    place.now += KEEP_S / 2
    second = place.claim("second")
    assert second.warm_name == first.warm_name
    assert place.launch(second) == handle


def test_runs_that_start_at_once_launch_one_worker(place: Place):
    """Each run launches where it is its turn, and waits where another does."""
    start = threading.Barrier(6)
    launches: list[str] = []

    def go(number: int) -> str:
        run = place.run(f"run{number}")
        start.wait()
        place.workers().claim(run, REQUEST, KEEP_S)
        claimed = place.store.read(run.name)
        assert claimed is not None
        turn = place.workers().turn(claimed)
        assert turn is not None
        if turn.launch:
            launches.append(claimed.name)
            name = turn.lease.name
            place.workers().record(WorkerHandle(name, name, "process", "http://w", "tiny", 1))
        return turn.lease.name

    with ThreadPoolExecutor(6) as pool:
        names = set(pool.map(go, range(6)))
    assert (len(names), len(launches)) == (1, 1)


@pytest.mark.parametrize("seconds_left", [warm.MARGIN_S - 0.1, 0.0, -100.0])
def test_a_run_that_comes_when_the_warm_period_ends_gets_a_worker_of_its_own(
    place: Place, seconds_left: float
):
    first = place.claim("first")
    place.launch(first)
    place.give_back(first)
    place.now += KEEP_S - seconds_left
    second = place.claim("second")
    assert second.warm_name != first.warm_name
    turn = place.workers().turn(second)
    assert turn is not None
    assert turn.launch


def test_a_claim_is_idempotent(place: Place):
    assert place.claim("first").warm_name == place.claim("first").warm_name
    held = place.lease_of(place.claim("first"))
    assert held is not None
    assert held.warm is not None
    assert len(held.warm.uses) == 1


def test_a_retry_stays_with_its_worker_although_there_is_a_later_one(place: Place):
    first = place.claim("first")
    place.launch(first)
    place.seen = Observation(ProcessObservation(False))
    later = place.claim("second")
    place.seen = READY
    assert later.warm_name != first.warm_name
    assert place.claim("first").warm_name == first.warm_name


def test_another_key_is_another_worker(place: Place):
    first = place.claim("first")
    place.launch(first)
    assert place.claim("second", Request("fedcba9876543210", "tiny")).warm_name != first.warm_name


@pytest.mark.parametrize(
    "sick",
    [
        Observation(ProcessObservation(False, "killed")),
        Observation(ALIVE, True, False, status=WorkerStatus.HUNG),
        Observation(ALIVE, True, False, status=WorkerStatus.DRAINING),
        Observation(ALIVE, True, True, False, status=WorkerStatus.READY),
        Observation(ALIVE, None, False),
    ],
)
def test_a_worker_that_is_not_healthy_is_not_adopted_and_ends(place: Place, sick: Observation):
    first = place.claim("first")
    place.launch(first)
    place.give_back(first)
    place.seen = sick
    second = place.claim("second")
    assert second.warm_name != first.warm_name
    assert place.ended == [first.warm_name]


def test_a_run_that_is_cleared_when_its_own_worker_is_sick_gets_another(place: Place):
    run = place.claim("first")
    place.launch(run)
    place.seen = Observation(ProcessObservation(False))
    again = place.claim("first")
    assert again.warm_name not in {None, run.warm_name}
    assert place.ended == [run.warm_name]


def test_a_dead_worker_that_others_still_use_is_left_to_them(place: Place):
    first = place.claim("first")
    place.launch(first)
    place.seen = Observation(ProcessObservation(False))
    assert place.claim("second").warm_name != first.warm_name
    assert place.ended == []


def test_a_worker_that_still_loads_is_shared_from_the_start(place: Place):
    first = place.claim("first")
    place.launch(first)
    place.seen = Observation(ALIVE, None, False, status=WorkerStatus.STARTING)
    assert place.claim("second").warm_name == first.warm_name


def test_a_run_waits_for_another_that_launches_and_takes_over_when_that_ends(place: Place):
    first, second = place.claim("first"), place.claim("second")
    assert first.warm_name == second.warm_name
    assert place.workers().turn(first)  # and is killed before it launches
    said: list[str] = []
    turns: list[Any] = []
    waiting = threading.Thread(target=lambda: turns.append(place.workers().turn(second, say=said.append)))
    waiting.start()
    wait_for(lambda: said, 20, "the second run to wait")
    assert first.name in said[0]
    assert turns == []
    place.give_back(first)  # its teardown
    waiting.join(20)
    assert turns[0].launch


def test_a_run_whose_worker_was_ended_by_a_user_is_told(place: Place):
    run = place.claim("first")
    assert run.warm_name is not None
    place.store.update(run.warm_name, Lease.release)
    with pytest.raises(LeaseError, match=r"was ended after this run had claimed it.*Clear the run"):
        place.workers().turn(run)


def test_a_worker_that_was_never_launched_or_is_not_healthy_is_not_kept(place: Place):
    run = place.claim("first")
    assert place.give_back(run) == [run.warm_name]
    run = place.claim("second")
    place.launch(run)
    place.seen = Observation(ProcessObservation(False))
    assert place.give_back(run) == [run.warm_name]


def test_a_worker_that_goes_on_with_work_of_an_ended_run_is_not_kept(
    place: Place, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(effects, "BUSY_WAIT_S", 0.0)
    run = place.claim("first")
    place.launch(run)
    place.seen = Observation(ALIVE, True, True, True, status=WorkerStatus.READY, busy=True)
    assert place.give_back(run) == [run.warm_name]


def test_requests_that_end_in_time_are_waited_for(place: Place, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(effects, "_BUSY_POLL_S", 0.0)
    busy = Observation(ALIVE, True, True, True, status=WorkerStatus.READY, busy=True)
    looks = [busy, busy, READY]
    run = place.claim("first")
    place.launch(run)
    workers = WarmWorkers(place.store, look=lambda _: looks.pop(0), end=place.end, clock=lambda: place.now)
    assert run.warm_name is not None
    assert workers.give_back(run.name, [run.warm_name]) == []
    assert looks == []


def test_a_worker_that_cannot_be_looked_at_is_not_kept_and_the_teardown_goes_on(place: Place):
    def refuse(_: WorkerHandle) -> Observation:
        raise ArcadiaError("Its key cannot be read.", what_to_do="See why.")

    run = place.claim("first")
    place.launch(run)
    assert run.warm_name is not None
    workers = WarmWorkers(place.store, look=refuse, end=place.end, clock=lambda: place.now)
    assert workers.give_back(run.name, [run.warm_name]) == [run.warm_name]


def test_without_a_way_to_look_no_worker_is_kept(place: Place):
    run = place.claim("first")
    place.launch(run)
    assert run.warm_name is not None
    blind = WarmWorkers(place.store, look=None, end=place.end, clock=lambda: place.now)
    assert blind.give_back(run.name, [run.warm_name]) == [run.warm_name]


def test_a_lease_that_cannot_be_read_is_passed_over(place: Place):
    first = place.claim("first")
    assert first.warm_name is not None
    place.store.file(first.warm_name).write_text("{")
    second = place.claim("second")
    assert second.warm_name not in {None, first.warm_name}
    assert place.claim("third").warm_name == second.warm_name


class Stale(LeaseStore):
    """Leases as one run saw them just before another removed or made one."""

    def __init__(self, root: Path, seen: list[Lease]) -> None:
        super().__init__(root)
        self._seen: list[Lease] | None = seen

    def warm(self) -> list[Lease]:
        seen, self._seen = self._seen, None
        return super().warm() if seen is None else seen


def test_two_that_were_made_at_once_become_one(place: Place):
    """One run saw the end of an earlier worker, and the other did not: each makes one of its own."""
    old = place.claim("old")
    seen = place.lease_of(old)
    assert seen is not None
    ended = seen.release()
    place.end(seen.name)
    first = place.claim("first")  # the old one is gone: generation 0 again
    place.now += 0.01
    stale = WarmWorkers(
        Stale(place.store.root, [ended]),
        look=lambda _: READY,
        end=place.end,
        clock=lambda: place.now,
    )
    second = place.run("second")
    assert stale.claim(second, REQUEST, KEEP_S).name == first.warm_name
    assert [lease.name for lease in place.store.warm()] == [first.warm_name]


def test_uses_are_renewed_with_the_runs_own_lease(place: Place):
    run = place.claim("first")
    held = place.lease_of(run)
    assert held is not None
    place.store._renew(run.name, place.now + 50)
    again = place.lease_of(run)
    assert again is not None
    assert again.expires_at == place.now + 50 + run.duration_s


def torn_down(store: LeaseStore, run: Lease, look: Callable[[WorkerHandle], Observation] | None) -> list[str]:
    return teardown(store, run.name, {}, grace_s=0, look=look)


@pytest.mark.parametrize("readable", [True, False])
def test_a_runs_teardown_gives_its_worker_back(store: LeaseStore, readable: bool):
    place = Place(store)
    place.now = time.time()
    run = place.claim("first")
    place.launch(run)
    if not readable:
        store.file(run.name).write_text("{")
    assert torn_down(store, run, lambda _: READY) == []
    assert store.names() == [run.warm_name]
    held = place.lease_of(run)
    assert held is not None
    assert held.warm is not None
    assert held.warm.uses == ()


@pytest.mark.parametrize("how", ["torn", "a link"])
def test_a_runs_teardown_goes_on_when_the_workers_lease_cannot_be_read(
    store: LeaseStore, tmp_path: Path, how: str
):
    place = Place(store)
    place.now = time.time()
    run = place.claim("first")
    assert run.warm_name is not None
    file = store.file(run.warm_name)
    file.unlink()
    file.write_text("{") if how == "torn" else file.symlink_to(tmp_path / "elsewhere")
    assert torn_down(store, run, lambda _: READY) == []
    assert run.name not in store.names()


def test_a_runs_teardown_ends_a_worker_that_is_not_fit(store: LeaseStore):
    place = Place(store)
    place.now = time.time()
    run = place.claim("first")
    place.launch(run)
    assert torn_down(store, run, None) == []
    assert store.names() == []


def test_a_reaper_that_looked_before_a_run_adopted_the_worker_ends_nothing(store: LeaseStore):
    place = Place(store)
    place.now = time.time()
    run = place.claim("first")
    held = place.lease_of(run)
    assert held is not None
    assert teardown(store, held.name, {}, grace_s=0, created_at=held.created_at) == []
    after = place.lease_of(run)
    assert after is not None
    assert not after.released


def test_what_fit_means():
    loading = Observation(ALIVE, None, False, status=WorkerStatus.STARTING)
    assert fit_for_a_run(loading, shared=True)
    assert not fit_for_a_run(loading, shared=False)
    assert fit_for_a_run(READY, shared=False)
    assert fit_to_be_kept(READY)
