"""FastChat's protocol through the middleware, over HTTP."""

import asyncio
import json

import aiohttp
import pytest

from tests.batch.reading import until
from tests.runtime.serving import worker


async def test_a_whole_answer_and_a_stream_have_fastchats_form():
    async with worker() as (url, _), aiohttp.ClientSession() as session:
        params = {"prompt": "hello", "echo": False}
        async with session.post(f"{url}/worker_generate", json=params) as response:
            assert (await response.json())["text"] == "HELLO"
        async with session.post(f"{url}/worker_generate_stream", json=params) as response:
            parts = [json.loads(part) for part in (await response.read()).split(b"\0") if part]
        assert [(part["text"], part["error_code"]) for part in parts] == [("HELLO", 0)]


@pytest.mark.parametrize("path", ["/worker_generate", "/worker_generate_stream"])
async def test_a_client_that_leaves_ends_its_generation(path):
    async with worker() as (url, served), aiohttp.ClientSession() as session:
        calls = [asyncio.create_task(leave_after_the_headers(session, url + path)) for _ in range(4)]
        await until(lambda: served.running == 4)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        await until(lambda: served.running == 0)
        assert (served.begun, served.finished) == (4, 0)


async def leave_after_the_headers(session: aiohttp.ClientSession, url: str) -> None:
    async with session.post(url, json={"prompt": "wait"}) as response:
        await response.read()


@pytest.mark.parametrize(
    "body",
    [
        b"[]",
        b"no JSON",
        b'{"prompt": 1}',
        b'{"prompt": "a", "max_new_tokens": 1e999}',
        b'{"prompt": "a", "temperature": {}}',
        b"[" * 100_000,
    ],
)
async def test_an_invalid_request_gets_fastchats_code_for_it(body):
    async with (
        worker() as (url, _),
        aiohttp.ClientSession() as session,
        session.post(f"{url}/worker_generate", data=body) as response,
    ):
        assert (response.status, (await response.json())["error_code"]) == (200, 40001)


async def test_the_status_is_told_without_reading_the_body():
    async with worker() as (url, _):
        host, _, port = url.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST /worker_get_status HTTP/1.1\r\nHost: a\r\nContent-Length: 999999\r\n\r\n")
        assert b" 200 " in await reader.readline()
        writer.close()
