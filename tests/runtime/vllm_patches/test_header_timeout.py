"""Connections that send half a request, on a real uvicorn."""

from __future__ import annotations

import asyncio

import pytest
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from airflow_arcadia.runtime.vllm_patches.header_timeout import limit_headers
from tests.runtime.serving import worker

HALF = b"POST /worker_get_status HTTP/1.1\r\nHost: a\r\n"
REQUEST = HALF + b"Content-Length: 0\r\n\r\n"


@pytest.fixture(autouse=True)
def limited(monkeypatch: pytest.MonkeyPatch) -> None:
    # So that it is undone after the test.
    monkeypatch.setattr(HttpToolsProtocol, "connection_made", HttpToolsProtocol.connection_made)
    limit_headers(0.1)


async def connect(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = url.removeprefix("http://").partition(":")
    return await asyncio.open_connection(host, int(port))


@pytest.mark.slow
@pytest.mark.parametrize("sent", [b"", HALF, REQUEST + HALF])
async def test_a_connection_whose_headers_do_not_arrive_is_closed(sent: bytes):
    async with worker() as (url, _):
        reader, writer = await connect(url)
        writer.write(sent)
        async with asyncio.timeout(10):
            answered = await reader.read()
        assert answered.count(b"200 OK") == sent.count(b"\r\n\r\n")
        writer.close()


async def test_a_request_that_runs_longer_keeps_its_connection():
    async with worker() as (url, served):
        reader, writer = await connect(url)
        body = b'{"prompt": "wait"}'
        writer.write(
            b"POST /worker_generate HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )
        idle, idle_writer = await connect(url)
        async with asyncio.timeout(10):
            assert await idle.read() == b""  # opened later, and closed meanwhile
        served.go.set()
        assert b"200 OK" in await reader.readline()
        writer.close()
        idle_writer.close()
