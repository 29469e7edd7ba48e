"""Claim, share and give back warm workers: the effects around :mod:`airflow_arcadia.warm`."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from airflow_arcadia import warm
from airflow_arcadia.exceptions import ArcadiaError, LeaseError, UnreadableLeaseError, WorkerError
from airflow_arcadia.lease import Lease, Use
from airflow_arcadia.lease_store import Leases
from airflow_arcadia.readiness import Observation, ProcessObservation
from airflow_arcadia.worker import RayConnection, WorkerHandle, WorkerStatus

_ATTEMPTS = 20
_TURN_POLL_S = 1.0
_BUSY_POLL_S = 0.5
BUSY_WAIT_S = 5.0
"""How long the last run of a worker waits for requests that are still running to end."""
_UNSEEN = Observation(ProcessObservation(None))
_UNFIT = frozenset({WorkerStatus.HUNG, WorkerStatus.DRAINING, WorkerStatus.FAILED})

log = logging.getLogger(__name__)

Look = Callable[[WorkerHandle], Observation]
"""Looks at a worker once, as ``model_ready`` does: one generation included."""


def fit_for_a_run(seen: Observation, *, shared: bool) -> bool:
    """Whether a run may adopt a worker.

    :param shared: whether other runs hold it: it may then still be loading, or answer late.
    """
    if seen.process.alive is False or seen.status in _UNFIT:
        return False
    return shared or bool(seen.process.alive and seen.answers and seen.generates)


def fit_to_be_kept(seen: Observation) -> bool:
    """Whether a worker that nobody uses any more may be kept for a later run."""
    return fit_for_a_run(seen, shared=False) and not seen.busy


@dataclass(frozen=True)
class Turn:
    """What a run's task does next about the worker that it shares.

    :param lease: the warm worker's.
    :param launch: whether this run launches; else the worker's handles are in the lease.
    :param keep_s: seconds that this run asked for it to be kept.
    """

    lease: Lease
    launch: bool
    keep_s: float = 0.0

    def handle(self, name: str) -> WorkerHandle | None:
        """The handle of the worker of that name, once it was launched."""
        found = self.lease.warm.handles.get(name) if self.lease.warm else None
        return WorkerHandle.from_dict(found) if found else None

    @property
    def ray(self) -> RayConnection | None:
        """The Ray cluster of workers that were launched."""
        return next((handle.ray for handle in handles_of(self.lease)), None)


class WarmWorkers:
    """The warm workers of one connection.

    :param leases: where all leases are.
    :param look: looks at a worker; None where its API key is not known: such a worker is never kept.
    :param end: ends everything that the lease of that name owns.
    :param clock: seconds since the epoch.
    """

    def __init__(
        self,
        leases: Leases,
        *,
        look: Look | None,
        end: Callable[[str], Sequence[str]],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._leases = leases
        self._look = look
        self._end = end
        self._clock = clock

    def claim(self, run: Lease, request: warm.Request, keep_s: float) -> Lease:
        """Let the run use the worker it asks for: one that is there and healthy, or a new one.

        Nothing is launched. Idempotent. Returns the worker's lease, which the run's own records.
        Raises :class:`WorkerError` when other runs change the leases faster than this one can.
        """
        unfit: set[str] = set()
        taken: set[int] = set()
        for _ in range(_ATTEMPTS):
            known = warm.of_key(self._leases.warm(), request.key)
            if (held := self._adopted(known, run, keep_s, unfit)) is None:
                generations = {lease.identity.map_index for lease in known} | taken
                held = request.new(max(generations, default=-1) + 1, self._use(run, keep_s), self._clock())
                if not self._leases.create(held):
                    if held.identity.map_index not in {lease.identity.map_index for lease in known}:
                        taken |= self._unseen(request, held)
                    continue
                log.info("No worker to share: this run launches one, under lease %s.", held.name)
                held = self._without_twin(held, run, request, keep_s, unfit)
            self._record(run, held, keep_s)
            return held
        raise WorkerError(
            "A warm worker could not be claimed: other runs changed its leases each time.",
            what_to_do="Clear the run from its reserve task.",
        )

    def turn(self, run: Lease, *, say: Callable[[str], None] = log.info) -> Turn | None:
        """Whether this run provisions and launches; waits while another run does. None: it uses none.

        Raises :class:`LeaseError` when the worker was ended meanwhile.
        """
        name, said = run.warm_name, ""
        if name is None:
            return None
        while True:
            held = self._taken(name, run.name)
            if held is None or held.released:
                raise LeaseError(
                    f"The warm worker of lease {name} was ended after this run had claimed it.",
                    what_to_do="Clear the run from its reserve task.",
                )
            if warm.launched(held) or warm.may_launch(held, run.name):
                return Turn(held, not warm.launched(held), warm.keep_of(run))
            if held.warm is not None and held.warm.launcher != said:
                said = held.warm.launcher
                say(f"The run of lease {said} launches the worker that both use; waiting for that.")
            time.sleep(_TURN_POLL_S)

    def record(self, handle: WorkerHandle) -> None:
        """Let other runs find a worker that was launched."""
        raw = handle.to_dict()
        self._leases.update(handle.lease, lambda held: warm.record_handle(held, handle.name, raw))

    def give_back(self, run: str, names: Sequence[str]) -> list[str]:
        """End the run's uses. Returns the leases that nobody may use any more: to be torn down.

        :param names: leases of warm workers.
        """
        return [name for name in names if self._given_back(run, name)]

    def used_by(self, run: str) -> list[str]:
        """Leases of the warm workers that a run uses, found without the run's own lease."""
        return [
            lease.name
            for lease in self._leases.warm()
            if lease.warm is not None and any(use.user == run for use in lease.warm.uses)
        ]

    def _taken(self, name: str, user: str) -> Lease | None:
        """The worker's lease, with the launch taken by that run where it may; None when there is none."""
        held = self._leases.read(name)
        if held is None or warm.take_launch(held, user, self._clock()) == held:
            return held  # what is only read may be read often
        return self._leases.update(name, lambda found: warm.take_launch(found, user, self._clock()))

    def _adopted(self, known: Sequence[Lease], run: Lease, keep_s: float, unfit: set[str]) -> Lease | None:
        # The one it uses already comes first: a retry must find its own.
        for lease in sorted(known, key=lambda one: not warm.holds(one, run.name, self._clock())):
            if lease.name in unfit or not warm.adoptable(lease, run.name, self._clock()):
                continue
            if not self._is_fit(lease, run.name):
                unfit.add(lease.name)
                self._abandon(lease.name, run.name)
                continue
            try:
                held = self._leases.update(
                    lease.name, lambda found: warm.adopt(found, self._use(run, keep_s), self._clock())
                )
            except LeaseError:
                continue  # ended meanwhile
            if warm.holds(held, run.name, self._clock()):
                log.info("This run adopts the worker of lease %s.", held.name)
                return held
        return None

    def _record(self, run: Lease, held: Lease, keep_s: float) -> None:
        self._leases.update(run.name, lambda found: warm.record_use(found, held.name, keep_s))

    def _use(self, run: Lease, keep_s: float) -> Use:
        return warm.use_of(run, keep_s, self._clock())

    def _is_fit(self, lease: Lease, user: str) -> bool:
        if self._look is None:
            return True
        shared = bool(warm.others(lease, user, self._clock()))
        return all(fit_for_a_run(seen, shared=shared) for seen in self._looked(lease))

    def _looked(self, lease: Lease) -> list[Observation]:
        """What is seen of its workers; of one that cannot be looked at, nothing."""
        found = []
        for handle in handles_of(lease):
            try:
                found.append(self._look(handle) if self._look else _UNSEEN)
            except ArcadiaError as error:
                log.warning("Worker %s cannot be looked at: %s", handle.name, error)
                found.append(_UNSEEN)
        return found

    def _abandon(self, name: str, user: str) -> None:
        """End a worker that is not fit, unless others use it."""
        log.warning("The worker of lease %s is not healthy and is not adopted.", name)
        try:
            held = self._leases.update(name, lambda found: warm.abandon(found, user, self._clock()))
        except LeaseError:
            return
        if held.released and (left := self._end(name)):
            log.warning("Still there of lease %s: %s", name, "; ".join(left))

    def _unseen(self, request: warm.Request, wanted: Lease) -> set[int]:
        """The generation, if its lease is there but cannot be read: it is to be passed over."""
        again = {lease.name for lease in self._leases.warm()}
        return set() if wanted.name in again else {wanted.identity.map_index}

    def _without_twin(
        self, made: Lease, run: Lease, request: warm.Request, keep_s: float, unfit: set[str]
    ) -> Lease:
        """The older of two that were made at once, as the end of an earlier one was seen by only one run."""
        twins = [
            lease
            for lease in warm.of_key(self._leases.warm(), request.key)
            if lease.name != made.name and lease.created_at <= made.created_at
        ]
        older = self._adopted(twins, run, keep_s, unfit)
        if older is None:
            return made
        for name in self.give_back(run.name, [made.name]):
            self._end(name)
        return older

    def _given_back(self, run: str, name: str) -> bool:
        try:
            held = self._leases.read(name)
            if held is None:
                return False
            used = warm.holds(held, run, self._clock())
            keep = used and (bool(warm.others(held, run, self._clock())) or self._may_be_kept(held))
            after = self._leases.update(
                name, lambda found: warm.give_back(found, run, self._clock(), keep=keep)
            )
        except (UnreadableLeaseError, OSError) as error:
            log.warning("The warm worker of lease %s ends by itself: %s", name, error)
            return False
        except LeaseError:
            return False  # whoever ended it has ended all that it owned
        if not after.released:
            left = warm.others(after, run, self._clock())
            until = datetime.fromtimestamp(after.expires_at).astimezone().isoformat(" ", "seconds")
            log.info(
                "The worker of lease %s %s.",
                name,
                f"is still used by {', '.join(left)}"
                if left
                else f"stays warm for the next run until {until}",
            )
        return after.released

    def _may_be_kept(self, lease: Lease) -> bool:
        if self._look is None or not warm.launched(lease):
            return False
        deadline = time.monotonic() + BUSY_WAIT_S
        while True:
            seen = self._looked(lease)
            if all(map(fit_to_be_kept, seen)):
                return True
            still = [fit_for_a_run(one, shared=False) for one in seen]
            if not all(still) or time.monotonic() > deadline:
                log.info("The worker of lease %s is not kept: it is %s.", lease.name, _why(seen))
                return False
            time.sleep(_BUSY_POLL_S)


def _why(seen: Sequence[Observation]) -> str:
    return "busy with requests of a run that has ended" if all(s.generates for s in seen) else "not healthy"


def handles_of(lease: Lease) -> list[WorkerHandle]:
    """The workers of a warm worker's lease that have been launched."""
    return [WorkerHandle.from_dict(raw) for raw in (lease.warm.handles.values() if lease.warm else ())]
