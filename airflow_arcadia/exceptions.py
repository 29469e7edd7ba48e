"""The one family of errors: each says what happened, what is still running, and what to do."""

from __future__ import annotations

NO_WORKER_STARTED = "No worker was started."
"""``still_running`` of what is checked before the launch; a Ray cluster may run by then."""


class ArcadiaError(Exception):
    """Base of every error this provider raises on purpose.

    :param what: what happened, as one sentence.
    :param what_to_do: the next step for whoever reads it.
    :param still_running: what still runs, or is kept, as one sentence; empty where the code that raises
        cannot know.
    """

    retryable = True
    """Whether another attempt can succeed: Airflow retries only then."""

    def __init__(self, what: str, *, what_to_do: str, still_running: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.still_running = still_running
        self.what_to_do = what_to_do

    @property
    def lines(self) -> list[str]:
        """What happened, what still runs and what to do, each on a line of its own."""
        parts = (self.what, self.still_running, self.what_to_do)
        return [line for part in parts for line in part.splitlines() if line.strip()]

    def __str__(self) -> str:
        return " ".join(filter(None, (self.what, self.still_running, self.what_to_do)))

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.what, self.still_running, self.what_to_do)


def in_lines(error: ArcadiaError) -> str:
    """Its text with what happened, what still runs and what to do on lines of their own."""
    return "\n".join(error.lines)


def _rebuild(cls: type[ArcadiaError], what: str, still_running: str, what_to_do: str) -> ArcadiaError:
    return cls(what, what_to_do=what_to_do, still_running=still_running)


class ArcadiaConfigError(ArcadiaError, ValueError):
    """A configuration, parameter or specification that cannot work as written."""

    retryable = False


class RayClusterError(ArcadiaError):
    """The Ray cluster cannot be reached or cannot serve this worker."""


class RayClusterUnfitError(RayClusterError):
    """The cluster will never take this worker, however long one waits."""

    retryable = False


class RayClusterBusyError(RayClusterError):
    """The cluster could take this worker, but not now."""


class RayClusterUnreachableError(RayClusterError):
    """Nothing usable answers at the dashboard's address."""


class RayAuthenticationError(RayClusterError):
    """The cluster asks for a token and ours is missing or wrong."""

    retryable = False


class WorkerError(ArcadiaError):
    """The worker could not be started, died, or never became ready."""


class WorkerLostError(WorkerError):
    """The worker ended while it was needed; only a new launch brings it back."""

    retryable = False


class BatchInputError(ArcadiaError, ValueError):
    """The batch's input, output or parameters cannot be used."""

    retryable = False


class BatchError(ArcadiaError):
    """The batch stopped before its end; what it committed is kept."""


class TeardownError(ArcadiaError):
    """Something a lease owns is still there after teardown."""


class LeaseError(ArcadiaError):
    """A lease that is needed is not there."""


class UnreadableLeaseError(ArcadiaError, ValueError):
    """A lease exists but cannot be understood: its text is damaged or lacks what every lease has."""
