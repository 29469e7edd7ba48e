"""Ports that stay free until they are used."""

from __future__ import annotations

import socket

import pytest

from airflow_arcadia import ports
from airflow_arcadia.ports import free_port, require_free


def test_a_free_port_lies_below_the_ephemeral_range():
    first = int(ports._RANGE.read_text().split()[0])
    assert all(ports._FIRST <= free_port() < first for _ in range(20))


def test_a_port_that_something_listens_on_is_not_free():
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(OSError, match="in use"):
        require_free("127.0.0.1", server.getsockname()[1])


def test_a_port_that_is_the_near_end_of_a_connection_is_not_free():
    server = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(server.getsockname())
    with server, client, pytest.raises(OSError, match="in use"):
        require_free("127.0.0.1", client.getsockname()[1])


def test_where_no_lower_port_is_free_the_kernel_chooses(monkeypatch: pytest.MonkeyPatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = server.getsockname()[1]
        monkeypatch.setattr(ports, "_FIRST", taken)
        monkeypatch.setattr(ports, "_first_ephemeral", lambda: taken + 1)
        assert free_port() != taken
