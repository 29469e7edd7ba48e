"""A batch's way to the server it runs in."""

import asyncio
import json

import pytest

from airflow_arcadia.batch.openai_format import CHAT
from airflow_arcadia.batch.transport.http_client import AnswerTimeout, ConnectionLost
from airflow_arcadia.runtime.asgi_client import AsgiClient
from airflow_arcadia.runtime.endpoint_caller import EndpointCaller
from airflow_arcadia.runtime.in_process_client import InProcessClient
from tests.batch.reading import until
from tests.runtime.app import Served


def row(**fields) -> bytes:
    return json.dumps({"prompt": "hello", **fields}).encode()


@pytest.fixture
async def served() -> Served:
    return Served()


@pytest.fixture
async def client(served: Served) -> InProcessClient:
    return InProcessClient(EndpointCaller(served.app, served.scope), AsgiClient(served.app, served.scope))


async def test_it_posts_and_gets(client):
    assert json.loads((await client.post(CHAT, row())).body)["text"] == "HELLO"
    assert json.loads((await client.get("/v1/models")).body)["data"] == [{"id": "tiny"}]


@pytest.mark.parametrize(
    ("end", "error"),
    [
        (lambda client: client.drop_connections(), ConnectionLost),
        (lambda client: client.expire(0.0), AnswerTimeout),
    ],
)
async def test_requests_that_are_ended_fail_and_are_not_generated(served, client, end, error):
    rows = [asyncio.create_task(client.post(CHAT, row(wait=True))) for _ in range(3)]
    await until(lambda: served.running == 3)
    end(client)
    results = await asyncio.gather(*rows, return_exceptions=True)
    assert [type(result) for result in results] == [error] * 3
    await until(lambda: served.running == 0)
    assert (served.begun, served.finished) == (3, 0)
    served.go.set()
    assert (await client.post(CHAT, row(wait=True))).status == 200


async def test_a_young_request_does_not_expire(served, client):
    task = asyncio.create_task(client.post(CHAT, row(wait=True)))
    await until(lambda: served.running == 1)
    client.expire(60.0)
    served.go.set()
    assert (await task).status == 200


async def test_cancelling_a_request_cancels_its_row(served, client):
    task = asyncio.create_task(client.post(CHAT, row(wait=True)))
    await until(lambda: served.running == 1)
    task.cancel()
    await until(lambda: served.running == 0)
    with pytest.raises(asyncio.CancelledError):
        await task
