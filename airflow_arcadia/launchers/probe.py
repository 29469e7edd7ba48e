"""Look at a worker from outside: its process, the controller's list, its own answers, one token."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import aiohttp

from airflow_arcadia.launchers.base import Launcher
from airflow_arcadia.loading import Loading
from airflow_arcadia.readiness import NOT_LISTENING, Observation, ProcessObservation
from airflow_arcadia.worker import WorkerHandle, WorkerStatus

LOOK_S = 10.0
"""The longest that one look takes, whatever does not answer."""
_PROCESS_S = 3.0
_ASK_S = 2.5
"""For a call that the engine takes no part in; two in a row leave as much for a generation."""
_STATES = frozenset(state.value for state in WorkerStatus)
_KEY_REFUSED = "it does not accept the API key"


async def observe(launcher: Launcher, handle: WorkerHandle, api_key: str | None = None) -> Observation:
    """All evidence of one moment, within :data:`LOOK_S`; never raises for what cannot be reached."""
    deadline = time.monotonic() + LOOK_S
    try:
        process = await asyncio.wait_for(launcher.observe(handle), _PROCESS_S)
    except asyncio.TimeoutError:
        process = ProcessObservation(None)
    seen = await evidence(process, handle, api_key, deadline=deadline)
    return replace(seen, loading=str(Loading(process.log_tail)))


async def evidence(
    process: ProcessObservation, handle: WorkerHandle, api_key: str | None, *, deadline: float | None = None
) -> Observation:
    """What the controller and the worker itself say, beside what is known of its process.

    :param api_key: the worker's, if it asks for one.
    :param deadline: monotonic time at which this look must have ended; by default :data:`LOOK_S` from now.

    The controller is only asked for its list: ``/get_worker_address`` counts as a request and
    ``/refresh_all_workers`` empties it for a while.
    """
    if process.alive is False:
        return Observation(process)
    deadline = deadline or time.monotonic() + LOOK_S
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    async with aiohttp.ClientSession(headers=headers) as session:
        (listed, why_not_listed), (told, answers, why_no_answer) = await asyncio.gather(
            _listed(handle), _answers(session, handle)
        )
        status = _status(told)
        if not (listed and answers):
            refused = why_no_answer == _KEY_REFUSED
            said = why_no_answer or why_not_listed
            return Observation(process, listed, answers, said=said, key_refused=refused, status=status)
        generates, why = await _generates(session, handle, deadline)
    if not generates and status is WorkerStatus.READY and told.get("queue_length"):
        # It has generated before, watches its own engine, and is busy: ours waits behind others' requests.
        generates, why = True, ""
    busy = bool(told.get("queue_length"))
    return Observation(process, listed, answers, generates, why, status=status, busy=busy)


async def _listed(handle: WorkerHandle) -> tuple[bool | None, str]:
    if not handle.controller_address:
        return True, ""
    # The controller gets no key of ours: it is another server.
    async with aiohttp.ClientSession() as session:
        answer, why = await _post(session, f"{handle.controller_address.rstrip('/')}/list_models", {})
    if answer is None:
        return None, f"the controller at {handle.controller_address} cannot be asked: {why}"
    return handle.served_model_name in (answer.get("models") or ()), ""


async def _answers(
    session: aiohttp.ClientSession, handle: WorkerHandle
) -> tuple[Mapping[str, Any], bool | None, str]:
    """What it says of itself, whether it serves the model, and why not."""
    told, why = await _post(session, f"{handle.url}/worker_get_status", {})
    if told is None:
        return {}, False, why
    if handle.served_model_name not in (told.get("model_names") or ()):
        return told, False, str(told.get("cause") or why)
    details, why = await _post(session, f"{handle.url}/model_details", {"model": handle.served_model_name})
    return told, details is not None and bool(details.get("context_length")), why


async def _generates(
    session: aiohttp.ClientSession, handle: WorkerHandle, deadline: float
) -> tuple[bool, str]:
    body = {"model": handle.served_model_name, "prompt": "1", "max_tokens": 1, "temperature": 0}
    answer, why = await _post(session, f"{handle.url}/v1/completions", body, _left(deadline))
    if answer is not None:
        return bool(answer.get("choices")), ""
    body = {"model": handle.served_model_name, "input": "1"}
    # An embedding model has no completions; one vector is its token.
    answer, _ = await _post(session, f"{handle.url}/v1/embeddings", body, _left(deadline))
    return answer is not None and bool(answer.get("data")), why


def _left(deadline: float) -> float:
    # aiohttp takes 0 for "without a limit".
    return max(0.1, deadline - time.monotonic() - 0.1)


def _status(told: Mapping[str, Any]) -> WorkerStatus | None:
    """The worker's own word; None from a worker that is not this provider's."""
    state = told.get("status")
    return WorkerStatus(state) if state in _STATES else None


async def _post(
    session: aiohttp.ClientSession, url: str, body: Any, timeout_s: float = _ASK_S
) -> tuple[Mapping[str, Any] | None, str]:
    """The JSON object answered, or None and why."""
    try:
        async with session.post(url, json=body, timeout=aiohttp.ClientTimeout(total=timeout_s)) as response:
            if response.status == 401:
                return None, _KEY_REFUSED
            if response.status != 200:
                return None, f"HTTP {response.status} from {url}"
            answer = await response.json(content_type=None)
    except aiohttp.ClientConnectorError:
        return None, NOT_LISTENING
    except asyncio.TimeoutError:
        return None, f"no answer from {url} within {timeout_s:.1f} s"
    except (aiohttp.ClientError, ValueError) as error:
        return None, str(error) or type(error).__name__
    return (answer, "") if isinstance(answer, dict) else (None, f"{url} did not answer a JSON object")
