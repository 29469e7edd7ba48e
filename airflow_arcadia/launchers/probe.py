"""Look at a worker from outside: its process, the controller's list, its own answers, one token."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import aiohttp

from airflow_arcadia.launchers.base import Launcher
from airflow_arcadia.readiness import Observation, ProcessObservation
from airflow_arcadia.worker import WorkerHandle

_TIMEOUT = aiohttp.ClientTimeout(total=5)
_GENERATION_TIMEOUT = aiohttp.ClientTimeout(total=60)  # the first token of a large model may compile first

_KEY_REFUSED = "it does not accept the API key"


async def observe(launcher: Launcher, handle: WorkerHandle, api_key: str | None = None) -> Observation:
    """All evidence of one moment; never raises for what cannot be reached."""
    return await evidence(await launcher.observe(handle), handle, api_key)


async def evidence(process: ProcessObservation, handle: WorkerHandle, api_key: str | None) -> Observation:
    """What the controller and the worker itself say, beside what is known of its process.

    :param api_key: the worker's, if it asks for one.

    The controller is only asked for its list: ``/get_worker_address`` counts as a request and
    ``/refresh_all_workers`` empties it for a while.
    """
    if process.alive is False:
        return Observation(process)
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    async with aiohttp.ClientSession(timeout=_TIMEOUT, headers=headers) as session:
        (listed, why_not_listed), (answers, why_no_answer) = await asyncio.gather(
            _listed(handle), _answers(session, handle)
        )
        if not (listed and answers):
            refused = why_no_answer == _KEY_REFUSED
            said = why_no_answer or why_not_listed
            return Observation(process, listed, answers, said=said, key_refused=refused)
        generates, why = await _generates(session, handle)
    return Observation(process, listed, answers, generates, why)


async def _listed(handle: WorkerHandle) -> tuple[bool | None, str]:
    if not handle.controller_address:
        return True, ""
    # The controller gets no key of ours: it is another server.
    async with aiohttp.ClientSession(timeout=_TIMEOUT) as session:
        answer, why = await _post(session, f"{handle.controller_address.rstrip('/')}/list_models", {})
    if answer is None:
        return None, f"the controller at {handle.controller_address} cannot be asked: {why}"
    return handle.served_model_name in (answer.get("models") or ()), ""


async def _answers(session: aiohttp.ClientSession, handle: WorkerHandle) -> tuple[bool | None, str]:
    status, why = await _post(session, f"{handle.url}/worker_get_status", {})
    if status is None or handle.served_model_name not in (status.get("model_names") or ()):
        return False, why
    details, why = await _post(session, f"{handle.url}/model_details", {"model": handle.served_model_name})
    return details is not None and bool(details.get("context_length")), why


async def _generates(session: aiohttp.ClientSession, handle: WorkerHandle) -> tuple[bool, str]:
    body = {"model": handle.served_model_name, "prompt": "1", "max_tokens": 1, "temperature": 0}
    answer, why = await _post(session, f"{handle.url}/v1/completions", body, _GENERATION_TIMEOUT)
    if answer is not None:
        return bool(answer.get("choices")), ""
    body = {"model": handle.served_model_name, "input": "1"}
    # An embedding model has no completions; one vector is its token.
    answer, _ = await _post(session, f"{handle.url}/v1/embeddings", body, _GENERATION_TIMEOUT)
    return answer is not None and bool(answer.get("data")), why


async def _post(
    session: aiohttp.ClientSession, url: str, body: Any, timeout: aiohttp.ClientTimeout = _TIMEOUT
) -> tuple[Mapping[str, Any] | None, str]:
    """The JSON object answered, or None and why."""
    try:
        async with session.post(url, json=body, timeout=timeout) as response:
            if response.status == 401:
                return None, _KEY_REFUSED
            if response.status != 200:
                return None, f"HTTP {response.status} from {url}"
            answer = await response.json(content_type=None)
    except aiohttp.ClientConnectorError:
        return None, "nothing listens there yet"
    except (aiohttp.ClientError, asyncio.TimeoutError, ValueError) as error:
        return None, str(error) or type(error).__name__
    return (answer, "") if isinstance(answer, dict) else (None, f"{url} did not answer a JSON object")
