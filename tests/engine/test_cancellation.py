"""A client that leaves ends its generation on a real engine, whatever route it came by."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import requests

from airflow_arcadia.batch import BatchSpec
from airflow_arcadia.batch.batch_api import Running, judge
from airflow_arcadia.batch.openai_format import COMPLETIONS
from airflow_arcadia.batch.transport import bundles
from tests.batch.reading import until
from tests.conftest import wait_for
from tests.engine.serving import Served, served

pytestmark = [pytest.mark.engine, pytest.mark.timeout(400)]
CLIENTS, TOKENS = 80, 400
ASKED_FOR = CLIENTS * TOKENS
IDLE_WITHIN_S = 3.0
SHARE = 0.02
"""Of what was asked for: what may be generated after the clients have left."""


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory, worker_python: str, tiny_model: str) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("cancellation")
    settings = {"served_model_name": "tiny"}
    with served(folder, worker_python, tiny_model, **settings) as running:
        yield running


def completion(**fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "prompt": "import", "max_tokens": TOKENS, "ignore_eos": True, **fields}


def fastchat(**fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "prompt": "import", "max_new_tokens": TOKENS, "temperature": 1.0, **fields}


def bundle() -> bytes:
    return bundles.pack([(COMPLETIONS, json.dumps(completion()).encode())] * (CLIENTS // 4))


REQUESTS: dict[str, tuple[int, str, Callable[[], dict[str, Any]]]] = {
    "bundles": (4, bundles.PATH, lambda: {"data": bundle()}),
    "worker_generate": (CLIENTS, "/worker_generate", lambda: {"json": fastchat()}),
    "worker_generate_stream": (CLIENTS, "/worker_generate_stream", lambda: {"json": fastchat()}),
    "completions": (CLIENTS, "/v1/completions", lambda: {"json": completion()}),
    "completions as a stream": (CLIENTS, "/v1/completions", lambda: {"json": completion(stream=True)}),
}


@pytest.mark.parametrize("route", REQUESTS)
def test_clients_that_leave_end_their_generation(worker: Served, route: str):
    clients, path, request = REQUESTS[route]
    expect_idle(worker, asyncio.run(send_and_leave(worker, clients, path, request)))


def test_rows_of_a_batch_in_the_worker_end_with_their_time_out(worker: Served, tmp_path: Path):
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps({"body": completion()}) + "\n" for _ in range(CLIENTS)))
    spec = BatchSpec(str(source), str(tmp_path / "out.jsonl"), "tiny", request_timeout_s=1.0, max_attempts=1)
    batches = worker.batches
    name = asyncio.run(batches.submit(spec))
    wait_for(lambda: not isinstance(judge(asyncio.run(batches.get(name))), Running), 60, "the batch to end")
    expect_idle(worker, generated(worker))


async def send_and_leave(worker: Served, clients: int, path: str, request: Callable[[], Any]) -> float:
    """Send all requests, and close their connections while they generate; tokens generated until then."""
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def send() -> None:
            async with session.post(worker.url + path, **request()) as response:
                await response.read()

        before = generated(worker)
        tasks = [asyncio.create_task(send()) for _ in range(clients)]
        await until(lambda: generated(worker) >= before + 200)
        at_leaving = generated(worker)
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        # FastChat's requests cannot ignore the end-of-sequence token, which a random model says now and then.
        left = [result for result in results if result is not None]
        assert all(isinstance(result, asyncio.CancelledError) for result in left), left
        assert len(left) > 0.9 * clients
        return at_leaving


def expect_idle(worker: Served, at_leaving: float) -> None:
    """Nothing runs soon, and little was generated since the clients left."""
    wait_for(lambda: not running(worker), IDLE_WITHIN_S, "the engine to be idle")
    assert generated(worker) - at_leaving <= SHARE * ASKED_FOR
    assert worker.post("/worker_get_status", {}).json()["queue_length"] == 0


def generated(worker: Served) -> float:
    return metric(worker, "vllm:generation_tokens_total")


def running(worker: Served) -> float:
    return metric(worker, "vllm:num_requests_running") + metric(worker, "vllm:num_requests_waiting")


def metric(worker: Served, name: str) -> float:
    text = requests.get(f"{worker.url}/metrics", timeout=10).text
    return sum(
        float(value) for value in re.findall(rf"^{re.escape(name)}{{[^}}]*}} (\S+)$", text, re.MULTILINE)
    )
