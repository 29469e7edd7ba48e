"""A StatsD server that keeps what it is sent, and an Airflow that sends there."""

from __future__ import annotations

import inspect
import re
import socket
from collections.abc import Iterator
from typing import Any

import pytest

PREFIX = "airflow."
_LINE = re.compile(r"(?P<name>[^,:]+)(?P<tags>(?:,[^,=:]+=[^,:]*)*):(?P<value>[^|]+)\|(?P<kind>\w+)")


class Listener:
    """Receives datagrams on a free port of loopback.

    :ivar received: name, tags, value, and StatsD's letters of the kind, in the order of arrival.
    """

    def __init__(self) -> None:
        self.received: list[tuple[str, dict[str, str], float, str]] = []
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        # Loopback delivers a datagram before the sender goes on: what is not there is not sent.
        self._socket.setblocking(False)
        self.port = int(self._socket.getsockname()[1])

    def read(self) -> Listener:
        """Take what has arrived; returns itself."""
        while True:
            try:
                text = self._socket.recv(65536).decode()
            except BlockingIOError:
                return self
            for found in map(_LINE.fullmatch, text.splitlines()):
                assert found, text
                tags = dict(pair.split("=") for pair in found["tags"].split(",") if pair)
                name = found["name"].removeprefix(PREFIX)
                self.received.append((name, tags, float(found["value"]), found["kind"]))

    def sum(self, name: str, **tags: str) -> float:
        """What a counter was added in all, with these tags among its own."""
        return sum(
            value
            for found, own, value, kind in self.received
            if found == name and kind == "c" and tags.items() <= own.items()
        )

    def last(self, name: str, **tags: str) -> float:
        """The last value of a gauge or timer."""
        return [v for found, own, v, _ in self.received if found == name and tags.items() <= own.items()][-1]

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()


@pytest.fixture
def statsd(monkeypatch: pytest.MonkeyPatch) -> Iterator[Listener]:
    """A listener that Airflow's metrics of this process go to."""
    pytest.importorskip("statsd", reason="make setup installs it")
    listener = Listener()
    for name, value in {
        "STATSD_ON": "True",
        "STATSD_HOST": "127.0.0.1",
        "STATSD_PORT": str(listener.port),
        "STATSD_INFLUXDB_ENABLED": "True",
    }.items():
        monkeypatch.setenv(f"AIRFLOW__METRICS__{name}", value)
    _initialize()
    yield listener
    monkeypatch.undo()
    _initialize()
    listener.close()


def _initialize() -> None:
    """Read Airflow's settings of metrics, as a task's process does when it starts."""
    from airflow.providers.common.compat.sdk import Stats
    from airflow.sdk.observability.metrics import stats_utils

    make: Any = stats_utils.get_stats_factory
    if "export_legacy_names" in inspect.signature(Stats.initialize).parameters:
        Stats.initialize(factory=make(), export_legacy_names=False)
    else:  # Airflow before 3.3
        initialize: Any = Stats.initialize
        initialize(factory=make(Stats))
