"""Requests over HTTP, against servers that speak it in every way."""

import asyncio
import gzip
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from airflow_arcadia.batch.transport import http_client
from airflow_arcadia.batch.transport.http_client import (
    AnswerTimeout,
    BadAnswer,
    ConnectionLost,
    HttpClient,
    NotConnected,
)
from airflow_arcadia.exceptions import BatchInputError
from airflow_arcadia.ports import free_port
from tests.batch.reading import until

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def server(*answers: bytes) -> AsyncIterator[HttpClient]:
    """A client of a server that sends these answers, one a request, and closes without one after the last."""
    left = list(answers)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while left:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(left.pop(0))
            await writer.drain()
            if b"Connection: close" in answers[-1]:
                break
        writer.close()

    running = await asyncio.start_server(handle, "127.0.0.1", 0)
    client = HttpClient(f"http://127.0.0.1:{running.sockets[0].getsockname()[1]}/v1/")
    try:
        yield client
    finally:
        await client.close()
        running.close()


async def test_an_answer_that_is_compressed_unasked_is_read():
    body = gzip.compress(b'{"a": 1}')
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body)
    async with server(head + body) as client:
        assert (await client.get("/")).body == b'{"a": 1}'


async def test_hints_before_the_answer_are_skipped():
    hints = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
    async with server(hints + b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}") as client:
        assert (await client.get("/")).body == b"{}"


async def test_an_answer_that_ends_with_its_connection_is_whole():
    async with server(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{}") as client:
        assert (await client.get("/")).body == b"{}"


async def test_an_answer_without_an_end_is_refused_before_it_fills_the_memory(monkeypatch):
    monkeypatch.setattr(http_client, "MAX_ANSWER_BYTES", 1000)
    async with server(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + b"x" * 2000) as client:
        with pytest.raises(BadAnswer, match="more than 1000 bytes"):
            await client.get("/")


async def test_a_redirect_is_not_followed():
    moved = b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:9/\r\nContent-Length: 0\r\n\r\n"
    async with server(moved) as client:
        assert (await client.get("/")).status == 302


async def test_an_answer_cut_short_is_a_lost_connection():
    async with server(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\nConnection: close\r\n\r\n{}") as client:
        with pytest.raises(ConnectionLost):
            await client.get("/")


async def test_what_is_not_http_is_a_lost_connection():
    async with server(b"SSH-2.0-OpenSSH Connection: close\r\n\r\n") as client:
        with pytest.raises(ConnectionLost):
            await client.get("/")


async def test_a_kept_connection_that_the_server_closed_is_no_failure():
    kept = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n"
    connections = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write(kept + b"%d" % connections)
        # The next request on it is read, and not answered.
        await reader.readuntil(b"\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as running:
        client = HttpClient(f"http://127.0.0.1:{running.sockets[0].getsockname()[1]}")
        assert (await client.get("/")).body == b"1"
        assert (await client.get("/")).body == b"2"
        await client.close()


async def test_a_request_that_killed_its_server_is_not_taken_for_one_that_was_never_sent():
    answered = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answered)
        await reader.readuntil(b"\r\n\r\n")
        running.close()
        writer.close()

    running = await asyncio.start_server(handle, "127.0.0.1", 0)
    client = HttpClient(f"http://127.0.0.1:{running.sockets[0].getsockname()[1]}")
    await client.get("/")
    with pytest.raises(ConnectionLost) as lost:
        await client.post("/", b"{}")
    assert type(lost.value) is ConnectionLost
    await client.close()


async def test_a_server_that_is_not_there_was_never_connected_to():
    client = HttpClient(f"http://127.0.0.1:{free_port()}")
    with pytest.raises(NotConnected):
        await client.get("/")
    await client.close()


@pytest.mark.parametrize(
    ("end", "error"),
    [
        (lambda client: client.drop_connections(), ConnectionLost),
        (lambda client: client.expire(0.0), AnswerTimeout),
    ],
)
async def test_requests_can_be_ended_while_they_wait(end, error):
    waiting = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal waiting
        await reader.readuntil(b"\r\n\r\n")
        waiting += 1
        await reader.read()
        writer.close()

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as running:
        client = HttpClient(f"http://127.0.0.1:{running.sockets[0].getsockname()[1]}")
        requests = [asyncio.create_task(client.post("/", b"{}")) for _ in range(2)]
        await until(lambda: waiting == 2)
        client.expire(60.0)
        end(client)
        results = await asyncio.gather(*requests, return_exceptions=True)
        assert [type(result) for result in results] == [error] * 2
        await client.close()


@pytest.mark.parametrize(("url", "key"), [("ftp://host", None), ("http://", None), ("http://host", "a\nb")])
def test_an_endpoint_that_cannot_work_is_refused(url, key):
    with pytest.raises(BatchInputError):
        HttpClient(url, key)
