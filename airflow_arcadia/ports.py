"""Ports of this machine that stay free until they are used."""

from __future__ import annotations

import contextlib
import random
import socket
from pathlib import Path

_FIRST = 20000  # above Ray's default worker ports (10002-19999)
_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_USUAL_EPHEMERAL = 32768
_TRIES = 50


def free_port(host: str = "127.0.0.1") -> int:
    """A port of ``host`` (an address of this machine) that nothing listens on now.

    It lies below the kernel's ephemeral range: a port from that range may be taken as the near end of
    another process's outgoing connection before its server listens, or while a restarted server is away.
    Raises OSError when ``host`` is not an address of this machine.
    """
    end = max(_first_ephemeral(), _FIRST + 1)
    for port in random.sample(range(_FIRST, end), min(_TRIES, end - _FIRST)):
        with contextlib.suppress(OSError):
            return require_free(host, port)
    return require_free(host, 0)


def require_free(host: str, port: int) -> int:
    """``port`` itself, or the kernel's choice for 0. Raises OSError when something else has it."""
    with socket.socket() as probe:
        # As servers do: a closed connection's TIME_WAIT does not make a port taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
        return int(probe.getsockname()[1])


def _first_ephemeral() -> int:
    with contextlib.suppress(OSError, ValueError):
        return int(_RANGE.read_text().split()[0])
    return _USUAL_EPHEMERAL
