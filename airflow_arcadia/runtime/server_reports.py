"""What the server tells its supervisor: reasons to end the worker that only the server can know.

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
        """The reason the server gave for ending the worker, if it has."""
        with suppress(BlockingIOError):
            self._rest += os.read(self._read, _MOST_BYTES)
        *lines, self._rest = self._rest.split(b"\n")
        for line in lines:
            with suppress(ValueError, KeyError, TypeError):
                report = json.loads(line)
                reason = str(report["end"])
                self.hung = bool(report.get("hung"))
                return reason
        return None


def ask_to_end(reason: str, *, hung: bool, env: Mapping[str, str] = os.environ) -> bool:
    """Ask the supervisor, from within the server, to end the worker; False where there is no supervisor.

    :param reason: why, as the log and the worker's readiness will have it.
    :param hung: whether the engine hangs, so that its requests cannot be waited for.
    """
    with suppress(KeyError, ValueError, OSError):
        line = json.dumps({"end": reason, "hung": hung}) + "\n"
        os.write(int(env[FD_VARIABLE]), line.encode())
        return True
    return False
