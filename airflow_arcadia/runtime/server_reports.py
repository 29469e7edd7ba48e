"""What the server tells its supervisor: why the worker must end, and that its controller lists it.

A pipe, one JSON object a line. The server's process writes and the supervisor, which outlives it, reads.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress

FD_VARIABLE = "ARCADIA_SUPERVISOR_FD"
_MOST_BYTES = 65536


class SupervisorEnd:
    """The reading end."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        self._rest = b""
        self.hung = False
        """Whether the reason was a hang: waiting for running requests is useless then."""
        self.registered = False
        """Whether FastChat's controller may list the worker."""

    @property
    def inherited(self) -> tuple[int, ...]:
        """File descriptors that the server must inherit."""
        return (self._write,)

    @property
    def environment(self) -> dict[str, str]:
        """Environment that tells the server where to write."""
        return {FD_VARIABLE: str(self._write)}

    def opened(self) -> None:
        """The server has been started: its end of the pipe is its own now."""
        os.close(self._write)

    def check(self) -> str | None:
        """Read what the server has sent; the reason it gave for ending the worker, if it has."""
        with suppress(BlockingIOError):
            self._rest += os.read(self._read, _MOST_BYTES)
        *lines, self._rest = self._rest.split(b"\n")
        reason = None
        for line in lines:
            with suppress(ValueError, TypeError):
                report = dict(json.loads(line))
                self.registered = bool(report.get("registered", self.registered))
                self.hung = bool(report.get("hung", self.hung))
                reason = reason or report.get("end")
        return reason


def ask_to_end(reason: str, *, hung: bool, env: Mapping[str, str] = os.environ) -> bool:
    """Ask the supervisor, from within the server, to end the worker; False where there is no supervisor.

    :param reason: why, as the log and the worker's readiness will have it.
    :param hung: whether the engine hangs, so that its requests cannot be waited for.
    """
    return _report({"end": reason, "hung": hung}, env)


def report_registered(registered: bool, env: Mapping[str, str] = os.environ) -> None:
    """Tell the supervisor whether FastChat's controller may list the worker."""
    _report({"registered": registered}, env)


def _report(report: dict[str, object], env: Mapping[str, str]) -> bool:
    with suppress(KeyError, ValueError, OSError):
        os.write(int(env[FD_VARIABLE]), f"{json.dumps(report)}\n".encode())
        return True
    return False
