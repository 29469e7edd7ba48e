"""Runs come, launch, end or are killed in any order, and workers die: nothing is shared wrongly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from airflow_arcadia import warm
from airflow_arcadia.launchers.warm import WarmWorkers
from airflow_arcadia.lease import Identity, Lease
from airflow_arcadia.lease_store import no_such_lease
from airflow_arcadia.readiness import Observation, ProcessObservation
from airflow_arcadia.warm import Request
from airflow_arcadia.worker import WorkerHandle, WorkerStatus

KEEP_S, DURATION_S = 120.0, 60.0
REQUEST = Request("0123456789abcdef", "tiny")


class MemoryLeases:
    """Leases in a dict."""

    def __init__(self) -> None:
        self.kept: dict[str, Lease] = {}

    def reserve(self, identity: Identity, now: float, duration_s: float = DURATION_S) -> Lease:
        lease = Lease(identity.lease_name, identity, now, now, duration_s)
        self.kept[lease.name] = lease
        return lease

    def read(self, name: str) -> Lease | None:
        return self.kept.get(name)

    def update(self, name: str, change: Callable[[Lease], Lease]) -> Lease:
        if name not in self.kept:
            raise no_such_lease(name)
        self.kept[name] = change(self.kept[name])
        return self.kept[name]

    def create(self, lease: Lease) -> bool:
        if lease.name in self.kept:
            return False
        self.kept[lease.name] = lease
        return True

    def warm(self) -> list[Lease]:
        return [lease for lease in self.kept.values() if lease.warm is not None]

    async def renew(self, name: str, now: float) -> Lease:
        raise AssertionError("not used here")

    def names(self) -> list[str]:
        return list(self.kept)


class SharedWorkers(RuleBasedStateMachine):
    """Runs with an equal worker on one connection."""

    @initialize()
    def start(self) -> None:
        self.now = 1_000_000.0
        self.leases = MemoryLeases()
        self.workers = WarmWorkers(self.leases, look=self.look, end=self.end, clock=lambda: self.now)
        self.runs: dict[str, float] = {}
        self.dead: set[str] = set()
        self.launches: dict[str, list[str]] = {}
        self.count = 0

    def look(self, handle: WorkerHandle) -> Observation:
        alive = handle.lease not in self.dead and self.is_there(handle.lease)
        status = WorkerStatus.READY if alive else None
        return Observation(ProcessObservation(alive), alive, alive, alive, status=status)

    def is_there(self, name: str) -> bool:
        """Whether a supervisor would still run the worker of that lease."""
        held = self.leases.read(name)
        return held is not None and not held.lapsed(self.now)

    def end(self, name: str) -> Sequence[str]:
        self.leases.kept.pop(name, None)
        return []

    def run(self, name: str) -> Lease:
        held = self.leases.read(name)
        assert held is not None
        return held

    def pick(self, random: Random) -> str | None:
        return random.choice(sorted(self.runs)) if self.runs else None

    @rule(seconds=st.floats(0.1, 25))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        for name, renewed in list(self.runs.items()):
            if self.now - renewed >= DURATION_S / 3:
                run = self.leases.update(name, lambda held: held.renew(self.now))
                assert run.warm_name is not None
                if self.leases.read(run.warm_name):
                    self.leases.update(
                        run.warm_name, lambda held, run=run: warm.renew_use(held, run, self.now)
                    )
                self.runs[name] = self.now

    @rule()
    def a_run_comes(self) -> None:
        self.count += 1
        run = self.leases.reserve(Identity("dag", f"r{self.count}", "w"), self.now, DURATION_S)
        self.workers.claim(run, REQUEST, KEEP_S)
        self.runs[run.name] = self.now

    @rule(random=st.randoms(use_true_random=False))
    def a_run_gets_its_turn(self, random: Random) -> None:
        if (name := self.pick(random)) is None:
            return
        held = self.workers._taken(str(self.run(name).warm_name), name)
        assert held is not None, "a living run's worker is never ended"
        if warm.may_launch(held, name):
            self.launches.setdefault(held.name, []).append(name)

    @rule(random=st.randoms(use_true_random=False))
    def a_launch_succeeds(self, random: Random) -> None:
        if (name := self.pick(random)) is None:
            return
        lease = str(self.run(name).warm_name)
        if name in self.launches.get(lease, ()) and not warm.launched(self.run(lease)):
            self.workers.record(WorkerHandle(lease, lease, "process", "http://w", "tiny", 1))

    @rule(random=st.randoms(use_true_random=False))
    def a_run_ends(self, random: Random) -> None:
        if (name := self.pick(random)) is None:
            return
        del self.runs[name]
        for ended in self.workers.give_back(name, [str(self.run(name).warm_name)]):
            self.end(ended)
        self.end(name)

    @rule(random=st.randoms(use_true_random=False))
    def a_run_is_killed(self, random: Random) -> None:
        if (name := self.pick(random)) is not None:
            del self.runs[name]

    @rule(random=st.randoms(use_true_random=False))
    def a_worker_dies(self, random: Random) -> None:
        if launched := [lease.name for lease in self.leases.warm() if warm.launched(lease)]:
            self.dead.add(random.choice(sorted(launched)))

    @rule()
    def a_supervisor_looks(self) -> None:
        for lease in self.leases.warm():
            if lease.lapsed(self.now):
                self.end(lease.name)

    @invariant()
    def a_living_run_holds_its_worker(self) -> None:
        for name in self.runs:
            held = self.leases.read(str(self.run(name).warm_name))
            assert held is not None
            assert warm.holds(held, name, self.now)

    @invariant()
    def living_runs_share_the_workers_that_are_fit(self) -> None:
        used = {str(self.run(name).warm_name) for name in self.runs}
        assert len(used - self.dead) <= 1

    @invariant()
    def of_those_who_launch_one_is_alive(self) -> None:
        for lease, names in self.launches.items():
            held = self.leases.read(lease)
            if held is not None and not warm.launched(held):
                assert len({name for name in names if name in self.runs}) <= 1

    def teardown(self) -> None:
        """Once nobody comes any more, everything ends."""
        self.runs.clear()
        self.now += max(KEEP_S, DURATION_S) + 1
        assert all(lease.lapsed(self.now) for lease in self.leases.warm())


TestSharedWorkers = SharedWorkers.TestCase
TestSharedWorkers.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
