"""Rows answered by the server's endpoints, in its own process."""

import asyncio
import json

import pytest

from airflow_arcadia.batch.openai_format import CHAT, COMPLETIONS, EMBEDDINGS
from airflow_arcadia.runtime.endpoint_caller import EndpointCaller, find_endpoint
from tests.batch.reading import until
from tests.runtime.app import Served, watched, with_cancellation


def row(**fields) -> bytes:
    return json.dumps({"prompt": "hello", **fields}).encode()


async def test_a_row_goes_to_its_endpoint_past_all_middleware():
    served = Served()
    caller = EndpointCaller(served.app, served.scope)
    response = await caller.answer(CHAT, row())
    assert (response.status, json.loads(response.body)["text"]) == (200, "HELLO")
    assert served.through_middleware == 0


@pytest.mark.parametrize("body", [row(fail=True), b'{"prompt": 1}', b"no JSON"])
async def test_a_row_that_cannot_be_answered_gets_the_servers_own_answer(body):
    served = Served()
    response = await EndpointCaller(served.app, served.scope).answer(CHAT, body)
    assert response.status in {400, 422}
    assert served.through_middleware == 1
    if body == row(fail=True):
        assert response.retry_after == "3"
        assert b"it cannot be rendered" in response.body


async def test_an_endpoint_of_another_form_is_asked_by_a_whole_call():
    served = Served()
    response = await EndpointCaller(served.app, served.scope).answer(COMPLETIONS, row())
    assert (response.status, served.through_middleware) == (200, 1)


async def test_a_decorator_that_is_not_known_is_not_left_out():
    served = Served(decorate=lambda handler: with_cancellation(watched(handler)))
    assert find_endpoint(served.app, CHAT) is None
    response = await EndpointCaller(served.app, served.scope).answer(CHAT, row())
    assert (response.status, served.through_middleware) == (200, 1)


async def test_where_the_server_counts_its_load_rows_go_by_whole_calls():
    served = Served()
    served.app.state.enable_server_load_tracking = True
    assert find_endpoint(served.app, CHAT) is None


async def test_an_endpoint_that_is_not_there_is_the_servers_to_refuse():
    served = Served()
    assert (await EndpointCaller(served.app, served.scope).answer(EMBEDDINGS, b"{}")).status == 404


async def test_a_row_cannot_ask_for_any_other_url():
    served = Served()
    assert (await EndpointCaller(served.app, served.scope).answer("/v1/models", b"")).status == 404
    assert served.through_middleware == 0


@pytest.mark.parametrize("decorate", [with_cancellation, lambda handler: with_cancellation(watched(handler))])
async def test_a_row_that_nobody_waits_for_is_not_generated(decorate):
    """The endpoint answers a cancelled row with an error, as vLLM's does: it is not sent a second time."""
    served = Served(decorate)
    caller = EndpointCaller(served.app, served.scope)
    task = asyncio.create_task(caller.answer(CHAT, row(wait=True)))
    await until(lambda: served.running == 1)
    assert caller.rows == 1
    task.cancel()
    await until(task.done)
    assert task.cancelled()
    await until(lambda: served.running == 0)
    assert caller.rows == 0
    assert (served.begun, served.finished) == (1, 0)


async def test_what_the_application_raises_is_the_rows_error():
    async def broken(scope, receive, send):
        raise RuntimeError("the engine is gone")

    response = await EndpointCaller(broken, {}).answer(CHAT, row())
    assert response.status == 500
    assert "the engine is gone" in json.loads(response.body)["error"]["message"]
