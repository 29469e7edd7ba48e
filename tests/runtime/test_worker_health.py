"""A worker knows its own state: not ready before it generated, hung while it makes no token, idle."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.responses import JSONResponse, PlainTextResponse

from airflow_arcadia.ports import free_port
from airflow_arcadia.runtime import first_generation
from airflow_arcadia.runtime.middleware import ArcadiaMiddleware
from airflow_arcadia.runtime.server_reports import FD_VARIABLE, SupervisorEnd
from airflow_arcadia.worker import PlacedWorker
from tests.batch.reading import until


class Engine:
    """A server like vLLM's whose engine fails, hangs and recovers as the test says; and a controller."""

    def __init__(self) -> None:
        self.app = FastAPI()
        self.error: str | None = None
        self.tokens = 0
        self.works = asyncio.Event()
        self.works.set()
        self.listed: list[str] = []
        """Models the controller lists."""

        @self.app.post("/v1/completions")
        async def complete() -> Any:
            await self.works.wait()
            if self.error:
                return JSONResponse({"error": {"message": self.error}}, 500)
            self.tokens += 1
            return {"choices": [{"text": "1"}]}

        @self.app.get("/metrics")
        async def metrics() -> Any:
            return PlainTextResponse(f"vllm:generation_tokens_total {self.tokens}\n")

        @self.app.get("/health")
        async def health() -> Any:
            return PlainTextResponse("")

        @self.app.post("/register_worker")
        async def register(body: dict[str, Any]) -> Any:
            self.listed = body["worker_status"]["model_names"]

        @self.app.post("/receive_heart_beat")
        async def beat() -> Any:
            return {"exist": True}


class Worker:
    """What a test holds of a served worker."""

    def __init__(self, url: str, engine: Engine, session: aiohttp.ClientSession) -> None:
        self.url, self.engine, self.session = url, engine, session

    async def get(self, path: str) -> tuple[int, str]:
        async with self.session.get(self.url + path) as answer:
            return answer.status, await answer.text()

    async def post(self, path: str) -> Any:
        async with self.session.post(self.url + path, json={"prompt": "a"}) as answer:
            return await answer.json()

    async def status(self) -> str:
        return str((await self.post("/worker_get_status"))["status"])

    async def wait_for_status(self, wanted: str) -> None:
        async def reached() -> bool:
            return await self.status() == wanted

        await eventually(reached)


async def eventually(condition: Callable[[], Awaitable[Any]]) -> Any:
    """What the condition gives once it is true."""
    async with asyncio.timeout(10):
        while not (found := await condition()):  # noqa: ASYNC110 - it is asked over HTTP
            await asyncio.sleep(0.02)
    return found


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.setattr(first_generation, "RETRY_S", 0.02)

    @asynccontextmanager
    async def served(engine: Engine, **settings: Any) -> AsyncIterator[Worker]:
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        spec = PlacedWorker(name="w", model="tiny", port=port, controller_address=url, **settings)
        engine.app.add_middleware(ArcadiaMiddleware, spec=spec)
        config = uvicorn.Config(engine.app, host="127.0.0.1", port=port, log_level="error", lifespan="on")
        server = uvicorn.Server(config)
        task = asyncio.create_task(server.serve())
        await until(lambda: server.started)
        async with aiohttp.ClientSession() as session:
            try:
                yield Worker(url, engine, session)
            finally:
                engine.works.set()
                server.should_exit = True
                await task

    return served


async def test_a_first_generation_that_fails_leaves_the_worker_unready_and_unregistered(
    serve: Any, capsys: pytest.CaptureFixture[str]
):
    engine = Engine()
    engine.error = "EngineCore encountered an issue"
    async with serve(engine) as worker:

        async def failed() -> bool:
            return "HTTP 500" in (await worker.get("/health"))[1]

        await eventually(failed)
        code, said = await worker.get("/health")
        assert (code, "EngineCore encountered an issue" in said) == (503, True)
        told = await worker.post("/worker_get_status")
        assert (told["model_names"], told["status"]) == ([], "starting")
        assert "EngineCore encountered" in told["cause"]
        assert engine.listed == []
        engine.error = None
        await worker.wait_for_status("ready")
        await until(lambda: engine.listed == ["tiny"])
        assert (await worker.get("/health"))[0] == 200
    out = capsys.readouterr().out
    assert out.count("the first generation failed with HTTP 500") == 1
    assert out.index("the first generation failed") < out.index("ready: tiny")


async def test_a_hang_is_named_everywhere_and_so_is_its_end(serve: Any, capsys: pytest.CaptureFixture[str]):
    async with serve(Engine(), hang_timeout=0.3, hang_restart_timeout=0) as worker:
        engine = worker.engine
        await until(lambda: engine.listed == ["tiny"])
        engine.works.clear()
        waiting = asyncio.create_task(worker.post("/v1/completions"))
        await worker.wait_for_status("hung")
        code, said = await worker.get("/health")
        assert (code, "no token for 0.3 s while requests run" in said) == (503, True)
        assert engine.listed == []
        _, metrics = await worker.get("/metrics")
        assert 'arcadia_worker_status{status="hung"} 1' in metrics
        assert "arcadia_worker_ready_seconds " in metrics
        assert 'arcadia_worker_problem{cause="the engine hangs: no token' in metrics
        assert "vllm:generation_tokens_total" in metrics
        # Its clients have left: that alone is no recovery.
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert await worker.status() == "hung"
        engine.works.set()
        await worker.wait_for_status("ready")
        await until(lambda: engine.listed == ["tiny"])
        assert (await worker.get("/health"))[0] == 200
    out = capsys.readouterr().out
    assert "the engine hangs: no token for 0.3 s" in out
    assert "the engine generates again" in out


@pytest.fixture
def supervisor(monkeypatch: pytest.MonkeyPatch) -> SupervisorEnd:
    end = SupervisorEnd()
    monkeypatch.setenv(FD_VARIABLE, end.environment[FD_VARIABLE])
    return end


async def test_an_engine_that_does_not_recover_ends_its_worker(serve: Any, supervisor: SupervisorEnd):
    async with serve(Engine(), hang_timeout=0.2, hang_restart_timeout=0.3) as worker:
        await worker.wait_for_status("ready")
        worker.engine.works.clear()
        waiting = asyncio.create_task(worker.post("/v1/completions"))
        reason = await first_report(supervisor)
        assert "the engine hangs" in reason
        assert "has not recovered" in reason
        assert supervisor.hung
        waiting.cancel()


async def test_a_worker_that_nobody_uses_ends(serve: Any, supervisor: SupervisorEnd):
    async with serve(Engine(), idle_timeout=0.5) as worker:
        await worker.wait_for_status("ready")
        assert (await first_report(supervisor)).startswith("no request for")
        assert not supervisor.hung


async def test_one_that_works_or_is_asked_does_not(serve: Any, supervisor: SupervisorEnd):
    async with serve(Engine(), idle_timeout=0.6, hang_timeout=0) as worker:
        await worker.wait_for_status("ready")
        worker.engine.works.clear()
        waiting = asyncio.create_task(worker.post("/v1/completions"))
        loop = asyncio.get_running_loop()
        until_then = loop.time() + 1.5
        while loop.time() < until_then:
            assert supervisor.check() is None
            await asyncio.sleep(0.05)
        worker.engine.works.set()
        await waiting
        assert (await first_report(supervisor)).startswith("no request for")


async def first_report(supervisor: SupervisorEnd) -> str:
    async def told() -> str | None:
        return supervisor.check()

    return str(await eventually(told))


def test_without_a_supervisor_nobody_is_told(monkeypatch: pytest.MonkeyPatch):
    from airflow_arcadia.runtime.server_reports import ask_to_end

    monkeypatch.delenv(FD_VARIABLE, raising=False)
    assert not ask_to_end("why", hung=False)
    read, write = os.pipe()
    assert ask_to_end("why", hung=True, env={FD_VARIABLE: str(write)})
    assert json.loads(os.read(read, 100)) == {"end": "why", "hung": True}
    os.close(read)
    os.close(write)
