"""When is a worker ready? Evidence in, one decision out; the sensor and the trigger share it.

The order of evidence: its process lives → the controller lists the model → the worker itself answers → it
generates one token. A heartbeat alone proves nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from airflow_arcadia.worker import WorkerStatus

NOT_LISTENING = "nothing listens there yet"
_USAGE = re.compile(r"(?:^|\s)usage: ")
_ARGUMENT = re.compile(r"(?:^|\s)\S+: error: (.+)$")
"""How argparse ends: its usage, many lines of it for vLLM, and then what is wrong."""
_EXCEPTION = re.compile(r"(?:^|\s)(\w[\w.]*(?:Error|Exception|Killed)\b: .+)$")
_DECIDED = re.compile(r"(?:^|\s)arcadia: ((?:cannot start|stopping): .+)$")
"""The worker's own word on why it did not start, or ends."""
_ENDED = re.compile(r"(?:^|\s)arcadia: (ended: .+|the first generation failed.+)$")
"""What the worker saw, where nothing above names the cause."""


@dataclass(frozen=True)
class Trouble:
    """Why a worker will not run, where its launcher knows better than a log does.

    :param what: one sentence with the cause.
    :param still_running: one sentence.
    """

    what: str
    still_running: str
    what_to_do: str


@dataclass(frozen=True)
class ProcessObservation:
    """What is known of the worker's process, wherever it runs.

    :param alive: True, False, or None when it could not be read ("could not read" is never "absent").
    :param exit_reason: for a dead one, how it ended: ``exit code 1``, ``OOMKilled``, …
    :param log_tail: its last log lines, oldest first.
    :param trouble: for one that is dead or cannot start, the cause where it is known.
    :param doing: what it waits for before it runs, as part of a sentence.
    :param probed: whether its readiness probe passes, where something probes it: a hint to ask it at once.
    """

    alive: bool | None
    exit_reason: str | None = None
    log_tail: Sequence[str] = ()
    trouble: Trouble | None = None
    doing: str = ""
    probed: bool = False


@dataclass(frozen=True)
class Observation:
    """All that was seen of a worker at one moment; None means "not looked at, or could not be read".

    :param listed: whether the controller lists the model; True where there is no controller.
    :param answers: whether the worker itself says that it serves the model.
    :param generates: whether it generated a token.
    :param said: what stood in the way, in words, for the log and for a timeout's message.
    :param key_refused: whether the worker itself says that the API key is not its own.
    :param status: what the worker says of itself.
    :param busy: whether it says that requests were waiting or running.
    :param loading: how far its model is loaded, where its log tells.
    """

    process: ProcessObservation
    listed: bool | None = None
    answers: bool | None = None
    generates: bool | None = None
    said: str = ""
    key_refused: bool = False
    status: WorkerStatus | None = None
    busy: bool = False
    loading: str = ""


@dataclass(frozen=True)
class Waiting:
    """Not ready yet.

    :param status: for logs and the UI.
    :param what: what it waits for, as part of a sentence.
    """

    what: str
    status: WorkerStatus = WorkerStatus.STARTING


@dataclass(frozen=True)
class Ready:
    """The model generates."""

    status: WorkerStatus = field(default=WorkerStatus.READY)


@dataclass(frozen=True)
class Failed:
    """It will not be ready.

    :param what: one sentence with the cause.
    :param still_running: one sentence.
    """

    what: str
    still_running: str
    what_to_do: str
    log_tail: Sequence[str] = ()
    status: WorkerStatus = WorkerStatus.FAILED

    @property
    def sentences(self) -> str:
        """What happened, what still runs, what to do, a line each; and the worker's last log lines."""
        told = [self.what, self.still_running, self.what_to_do]
        if log_tail := without_usage(self.log_tail):
            told += ["The worker's last log lines:", *log_tail]
        return "\n".join(filter(None, told))


Outcome = Waiting | Ready | Failed


def decide(seen: Observation, *, started_at: float, now: float, startup_timeout_s: float) -> Outcome:
    """Whether the worker is ready, may still become so, or will not (times in seconds since the epoch)."""
    if seen.process.alive is False:
        return _dead(seen.process)
    if seen.process.alive and seen.listed and seen.answers and seen.generates:
        return Ready()
    if seen.key_refused:
        return Failed(
            "The worker does not accept the API key.",
            still_running="The worker still runs; the teardown ends it.",
            what_to_do="Give the arcadia connection the password that the worker was launched with.",
        )
    missing = _missing(seen)
    if now - started_at < startup_timeout_s:
        return Waiting(missing, seen.status or WorkerStatus.STARTING)
    return Failed(
        f"The model was not ready within {startup_timeout_s:.0f} s: still waiting for {missing}.",
        still_running="The worker still runs; the teardown ends it.",
        what_to_do="Raise startup_timeout, or see the worker's log for what it spends its time on.",
        log_tail=seen.process.log_tail,
    )


def likely_cause(log_tail: Sequence[str]) -> str | None:
    """The text of the log line that most likely names the cause of the worker's end, if one does.

    The worker's own decision comes first (what a server logs while it is ended is a consequence), then the
    last exception, what its command line has wrong, and what the worker saw of its server. Its other lines,
    such as "ready", name no cause.
    """
    for pattern in (_DECIDED, _EXCEPTION, _ARGUMENT, _ENDED):
        found = [match.group(1) for line in log_tail if (match := pattern.search(line.rstrip()))]
        if found:
            return found[-1]
    return None


def without_usage(log_tail: Sequence[str]) -> list[str]:
    """The lines without the usage that argparse writes before what is wrong: it is longer than the screen."""
    lines = list(log_tail)
    error = next((place for place, line in enumerate(lines) if _ARGUMENT.search(line)), None)
    if error is None:
        return lines
    usage = next((place for place, line in enumerate(lines[:error]) if _USAGE.search(line)), None)
    if usage is None:
        # Its first line is not among the last ones: all of them are options, up to the error.
        usage = error
        while usage and lines[usage - 1].strip().startswith(("[", "{", "--", "...")):
            usage -= 1
    return lines[:usage] + lines[error:]


class UsageFilter:
    """The same for lines that come one by one."""

    def __init__(self) -> None:
        self._in_usage = False

    def hides(self, line: str) -> bool:
        """Whether the next line is one of the usage's."""
        if _ARGUMENT.search(line):
            self._in_usage = False
        elif _USAGE.search(line):
            self._in_usage = True
        elif self._in_usage and not line[:1].isspace():
            self._in_usage = False
        return self._in_usage


def _dead(process: ProcessObservation) -> Failed:
    if process.trouble:
        known = process.trouble
        return Failed(known.what, known.still_running, known.what_to_do, process.log_tail)
    how = f" ({process.exit_reason})" if process.exit_reason else ""
    cause = likely_cause(process.log_tail)
    return Failed(
        f"The worker ended before it was ready{how}{f': {cause}' if cause else ''}.".replace("..", "."),
        still_running="It is no longer running.",
        what_to_do="Correct the cause its log names, then clear the run from its reserve task.",
        log_tail=process.log_tail,
    )


def _missing(seen: Observation) -> str:
    if seen.process.alive is None:
        what = "its process to be readable"
    elif seen.process.doing:
        return seen.process.doing
    elif not seen.answers:
        what = "the worker to serve the model"
        if seen.loading:
            more = f" ({seen.said})" if seen.said not in {"", NOT_LISTENING} else ""
            return f"{what}: {seen.loading}{more}"
    elif not seen.listed:
        what = "the controller to list the model"
    else:
        what = "the first generated token"
    return f"{what} ({seen.said})" if seen.said else what
