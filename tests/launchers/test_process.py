"""The process launcher's door: its port."""

from __future__ import annotations

import errno
import socket

import pytest

from airflow_arcadia.exceptions import WorkerError
from airflow_arcadia.launchers import process
from airflow_arcadia.ports import require_free


def test_a_port_that_a_process_listens_on_is_refused_at_once_and_its_holder_named():
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        pytest.raises(WorkerError, match="held by process"),
    ):
        process._free_port("127.0.0.1", server.getsockname()[1])


def test_a_port_that_a_killed_worker_still_holds_is_waited_for(monkeypatch: pytest.MonkeyPatch):
    answers = [OSError(errno.EADDRINUSE, "in use"), OSError(errno.EADDRINUSE, "in use"), None]

    def look(host: str, port: int) -> int:
        if error := answers.pop(0):
            raise error
        return require_free(host, port)

    monkeypatch.setattr(process, "require_free", look)
    monkeypatch.setattr(process, "_PORT_POLL_S", 0.0)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert process._free_port("127.0.0.1", port) == port
    assert answers == []


def test_an_address_of_another_machine_is_refused_at_once():
    with pytest.raises(WorkerError, match=r"cannot listen on 192\.0\.2\.1"):
        process._free_port("192.0.2.1", 21002)
