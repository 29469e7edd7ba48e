"""Registration with FastChat's controller: register, heartbeat, register again, leave.

The controller has no call to unregister, and lists a silent worker until its heartbeat expires (90 to
180 s). Registering again with *no model names* takes effect at once: the controller stops listing and
dispatching to the worker, and other workers are not touched, as ``/refresh_all_workers`` would.
"""

from __future__ import annotations

import asyncio
import enum
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import aiohttp

from airflow_arcadia.runtime.log import say

HEARTBEAT_S = float(os.environ.get("FASTCHAT_WORKER_HEART_BEAT_INTERVAL", "45"))
RETRY_S = (0.5, 1.0, 2.0, 5.0)
"""Waits between attempts to reach a controller that is not there (yet); the last one repeats."""
_TIMEOUT = aiohttp.ClientTimeout(total=5)


class Step(enum.Enum):
    """What to send next."""

    REGISTER = "register"
    HEARTBEAT = "heartbeat"


@dataclass(frozen=True)
class State:
    """What is known of the registration.

    :param registered: whether the controller took us at the last call.
    :param failures: calls in a row that it did not answer.
    """

    registered: bool = False
    failures: int = 0

    def next(self) -> tuple[Step, float]:
        """The next step, and seconds to wait before it."""
        if self.failures:
            return self._step, RETRY_S[min(self.failures, len(RETRY_S)) - 1]
        return self._step, HEARTBEAT_S if self.registered else 0.0

    @property
    def _step(self) -> Step:
        return Step.HEARTBEAT if self.registered else Step.REGISTER

    def after(self, step: Step, answer: bool | None) -> State:
        """The state after a step.

        :param answer: True when the controller knows us, False when it does not, None when it was silent.
        """
        if answer is None:
            return State(self.registered, self.failures + 1)
        return State(registered=answer, failures=0)


def leave_controller(controller: str, worker: str) -> None:
    """Take a worker off the controller whose own process cannot do so any more."""
    asyncio.run(Registration(controller, worker, dict).leave())


class Registration:
    """The worker's entry at the controller.

    :param controller: the controller's URL.
    :param worker: our own URL, which is our name there.
    :param status: makes ``worker_status`` {model_names, speed, queue_length}.
    """

    def __init__(self, controller: str, worker: str, status: Callable[[], dict[str, Any]]) -> None:
        self._controller = controller.rstrip("/")
        self._worker = worker
        self._status = status

    async def keep(self) -> None:
        """Stay registered until cancelled."""
        state = State()
        async with aiohttp.ClientSession(timeout=_TIMEOUT) as session:
            while True:
                step, wait_s = state.next()
                await asyncio.sleep(wait_s)
                answer = await (self._register if step is Step.REGISTER else self._beat)(session)
                following = state.after(step, answer)
                self._tell(state, following)
                state = following

    async def leave(self) -> None:
        """Take this worker off the controller at once."""
        nothing = {"model_names": [], "speed": 0, "queue_length": 0}
        async with aiohttp.ClientSession(timeout=_TIMEOUT) as session:
            if await self._post(session, "/register_worker", self._entry(nothing)) is not None:
                say(f"left the controller {self._controller}")

    async def _register(self, session: aiohttp.ClientSession) -> bool | None:
        sent = await self._post(session, "/register_worker", self._entry(self._status()))
        # /register_worker answers 200 even when it failed: only a heartbeat tells.
        return None if sent is None else await self._beat(session)

    async def _beat(self, session: aiohttp.ClientSession) -> bool | None:
        queue = self._status()["queue_length"]
        body = {"worker_name": self._worker, "queue_length": queue}
        answer = await self._post(session, "/receive_heart_beat", body)
        return None if answer is None else bool((answer.get("json") or {}).get("exist"))

    def _entry(self, status: dict[str, Any]) -> dict[str, Any]:
        return {
            "worker_name": self._worker,
            "check_heart_beat": True,
            "worker_status": status,
            "multimodal": False,
        }

    async def _post(self, session: aiohttp.ClientSession, path: str, body: Any) -> dict[str, Any] | None:
        try:
            async with session.post(self._controller + path, json=body) as response:
                if response.status != 200:
                    return None
                return {"json": await response.json(content_type=None)}
        except (aiohttp.ClientError, asyncio.TimeoutError, ValueError):
            return None

    def _tell(self, before: State, now: State) -> None:
        if now.registered and not before.registered:
            say(f"registered with the controller {self._controller}")
        elif now.failures == 1:
            say(f"the controller {self._controller} does not answer; trying again")
        elif before.registered and not now.registered:
            say("the controller forgot this worker; registering again")
