"""Looking at a worker from outside, over real HTTP; engine tests look at real workers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from airflow_arcadia.launchers import probe
from airflow_arcadia.launchers.probe import observe
from airflow_arcadia.ports import free_port
from airflow_arcadia.readiness import Observation, ProcessObservation
from airflow_arcadia.worker import WorkerHandle, WorkerStatus


class Server:
    """Answers what a test says, and remembers the keys it was sent."""

    def __init__(self, answers: dict[str, Any], key: str | None = None) -> None:
        self.answers = answers
        self.key = key
        self.keys: set[str | None] = set()
        self.silent: set[str] = set()
        """Paths that are never answered."""

    async def answer(self, request: web.Request) -> web.Response:
        self.keys.add(request.headers.get("Authorization"))
        if request.path in self.silent:
            await asyncio.Future()
        found = self.answers.get(request.path)
        open_to_all = request.path == "/worker_get_status"
        if self.key and not open_to_all and request.headers.get("Authorization") != f"Bearer {self.key}":
            return web.json_response({}, status=401)
        return web.json_response(found, status=404 if found is None else 200)


class Alive:
    """A launcher whose worker is in a known state."""

    name = "known"

    def __init__(self, alive: bool | None = True) -> None:
        self.observation = ProcessObservation(alive)

    async def observe(self, handle: WorkerHandle) -> ProcessObservation:
        return self.observation


READY: dict[str, Any] = {
    "/worker_get_status": {"model_names": ["m"]},
    "/model_details": {"context_length": 512},
    "/v1/completions": {"choices": [{"text": "1"}]},
}


@pytest.fixture
async def serve() -> AsyncIterator[Any]:
    servers = []

    async def start(answers: dict[str, Any], key: str | None = None) -> tuple[Server, str]:
        server = Server(answers, key)
        app = web.Application()
        app.router.add_post("/{path:.*}", server.answer)
        test_server = TestServer(app)
        await test_server.start_server()
        servers.append(test_server)
        return server, str(test_server.make_url("")).rstrip("/")

    yield start
    for test_server in servers:
        await test_server.close()


def handle(url: str, controller: str | None = None) -> WorkerHandle:
    return WorkerHandle("w", "lease", "known", url, "m", 1, controller)


async def look(*args: Any, alive: bool | None = True, api_key: str | None = None) -> Observation:
    return await observe(Alive(alive), handle(*args), api_key)  # type: ignore[arg-type]


async def test_all_evidence_is_seen_and_the_key_goes_to_the_worker_alone(serve: Any):
    worker, url = await serve(READY)
    controller, controller_url = await serve({"/list_models": {"models": ["m"]}})
    seen = await look(url, controller_url, api_key="the-key")
    assert (seen.listed, seen.answers, seen.generates) == (True, True, True)
    assert worker.keys == {"Bearer the-key"}
    assert controller.keys == {None}


async def test_a_key_that_the_worker_does_not_accept_is_told_from_a_model_that_is_not_there_yet(serve: Any):
    _, url = await serve(READY, key="the-key")
    for key in (None, "another"):
        seen = await look(url, api_key=key)
        assert (seen.answers, seen.key_refused) == (False, True)
    assert (await look(url, api_key="the-key")).generates
    assert not (await look(f"http://127.0.0.1:{free_port()}")).key_refused


async def test_without_a_controller_it_need_not_be_listed(serve: Any):
    _, url = await serve(READY)
    assert (await look(url)).generates


async def test_an_embedding_model_proves_itself_with_a_vector(serve: Any):
    answers = {k: v for k, v in READY.items() if k != "/v1/completions"}
    _, url = await serve({**answers, "/v1/embeddings": {"data": [{"embedding": [0.5]}]}})
    assert (await look(url)).generates


async def test_a_controller_that_cannot_be_asked_is_not_one_that_does_not_list(serve: Any):
    _, url = await serve(READY)
    seen = await look(url, f"http://127.0.0.1:{free_port()}")
    assert (seen.listed, seen.answers) == (None, True)
    assert "cannot be asked: nothing listens there" in seen.said


async def test_a_model_that_is_served_but_does_not_generate_is_not_ready(serve: Any):
    _, url = await serve({k: v for k, v in READY.items() if k != "/v1/completions"})
    seen = await look(url)
    assert (seen.answers, seen.generates) == (True, False)
    assert "HTTP 404" in seen.said


async def test_of_a_dead_worker_nothing_more_is_asked(serve: Any):
    worker, url = await serve(READY)
    seen = await look(url, alive=False)
    assert (seen.process.alive, seen.answers, worker.keys) == (False, None, set())


async def test_a_worker_that_hangs_says_so_itself(serve: Any):
    told = {"model_names": [], "status": "hung", "cause": "the engine hangs: no token for 60 s"}
    _, url = await serve({**READY, "/worker_get_status": told})
    seen = await look(url)
    assert (seen.answers, seen.status, seen.said) == (False, WorkerStatus.HUNG, told["cause"])


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look that takes half a second at most."""
    for name, value in {"LOOK_S": 0.5, "_PROCESS_S": 0.2}.items():
        monkeypatch.setattr(probe, name, value)


@pytest.mark.usefixtures("impatient")
async def test_one_look_ends_in_time_whatever_does_not_answer(serve: Any):
    worker, url = await serve(READY)
    worker.silent = {"/v1/completions"}
    async with asyncio.timeout(2):
        seen = await look(url)
    assert (seen.answers, seen.generates) == (True, False)
    assert "no answer from" in seen.said

    class Stuck(Alive):
        async def observe(self, handle: WorkerHandle) -> ProcessObservation:
            return await asyncio.Future()

    async with asyncio.timeout(2):
        seen = await observe(Stuck(), handle(url))  # type: ignore[arg-type]
    assert seen.process.alive is None


@pytest.mark.usefixtures("impatient")
async def test_a_busy_worker_that_knows_itself_to_be_ready_is(serve: Any):
    told = {"model_names": ["m"], "status": "ready", "cause": "", "queue_length": 512}
    worker, url = await serve({**READY, "/worker_get_status": told})
    worker.silent = {"/v1/completions"}
    assert (await look(url)).generates
    told["queue_length"] = 0
    assert not (await look(url)).generates


async def test_another_model_at_the_same_address_is_not_ours(serve: Any):
    _, url = await serve({**READY, "/worker_get_status": {"model_names": ["other"]}})
    assert (await look(url)).answers is False
