"""Registration with a controller: the pure steps, and a controller that comes late, forgets and restarts."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest
from aiohttp import web

from airflow_arcadia.ports import free_port
from airflow_arcadia.runtime.fastchat import registration
from airflow_arcadia.runtime.fastchat.registration import HEARTBEAT_S, RETRY_S, Registration, State, Step

WORKER = "http://127.0.0.1:21002"


def test_it_registers_first_and_then_beats():
    state = State()
    assert state.next() == (Step.REGISTER, 0.0)
    assert state.after(Step.REGISTER, True).next() == (Step.HEARTBEAT, HEARTBEAT_S)


def test_a_controller_that_forgot_is_registered_with_at_once():
    assert State(registered=True).after(Step.HEARTBEAT, False).next() == (Step.REGISTER, 0.0)


def test_a_silent_controller_is_tried_again_ever_more_slowly():
    state, waits = State(), []
    for _ in range(6):
        state = state.after(Step.REGISTER, None)
        waits.append(state.next()[1])
    assert waits == [*RETRY_S, RETRY_S[-1], RETRY_S[-1]]
    assert state.next()[0] is Step.REGISTER
    assert state.after(Step.REGISTER, True) == State(registered=True)


class FakeController:
    """FastChat's controller as far as a worker sees it; engine tests use the real one."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.models: dict[str, list[str]] = {}
        self.changed = asyncio.Condition()

    async def start(self) -> web.AppRunner:
        app = web.Application()
        app.router.add_post("/register_worker", self._register)
        app.router.add_post("/receive_heart_beat", self._beat)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", self.port).start()
        return runner

    async def until(self, models: dict[str, list[str]]) -> None:
        async with asyncio.timeout(10), self.changed:
            await self.changed.wait_for(lambda: self.models == models)

    async def _register(self, request: web.Request) -> web.Response:
        body = await request.json()
        async with self.changed:
            self.models[body["worker_name"]] = body["worker_status"]["model_names"]
            self.changed.notify_all()
        return web.json_response(None)

    async def _beat(self, request: web.Request) -> web.Response:
        return web.json_response({"exist": (await request.json())["worker_name"] in self.models})


def status() -> dict[str, Any]:
    return {"model_names": ["m"], "speed": 1, "queue_length": 0}


async def test_a_late_a_forgetful_and_a_restarted_controller_all_know_the_worker_in_the_end(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(registration, "HEARTBEAT_S", 0.05)
    monkeypatch.setattr(registration, "RETRY_S", (0.02,))
    controller = FakeController(free_port())
    ours = Registration(controller.url, WORKER, status)
    keeping = asyncio.create_task(ours.keep())
    try:
        runner = await controller.start()  # late: the first attempts found nothing
        await controller.until({WORKER: ["m"]})
        controller.models.clear()  # forgot
        await controller.until({WORKER: ["m"]})
        await runner.cleanup()  # restarted, with an empty memory
        controller.models.clear()
        runner = await controller.start()
        await controller.until({WORKER: ["m"]})
    finally:
        keeping.cancel()
        with suppress(asyncio.CancelledError):
            await keeping
    await ours.leave()
    assert controller.models == {WORKER: []}
    await runner.cleanup()


async def test_leaving_a_controller_that_is_gone_raises_nothing():
    await Registration(f"http://127.0.0.1:{free_port()}", WORKER, status).leave()
