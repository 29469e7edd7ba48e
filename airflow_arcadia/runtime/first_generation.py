"""A worker is ready once its model has generated: the first generation, and what hinders it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from airflow_arcadia.runtime.asgi_client import AsgiClient

RETRY_S = 1.0
_ATTEMPTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("/v1/completions", {"prompt": "1", "max_tokens": 1}),
    ("/v1/embeddings", {"input": "1"}),
    ("/pooling", {"input": "1"}),
)
"""What shows that a model works; a server answers 404 to what its model is not for."""
_LONGEST_MESSAGE = 500


async def wait_for_first_generation(client: AsgiClient, model: str, note: Callable[[str], None]) -> None:
    """Return once the model has generated.

    :param note: called with each new problem, such as ``the first generation failed with HTTP 500: …``.
    """
    told = None
    while (problem := await first_generation(client, model)) is not None:
        if problem != told:
            told = problem
            note(problem)
        await asyncio.sleep(RETRY_S)


async def first_generation(client: AsgiClient, model: str) -> str | None:
    """Generate once; None when that succeeded, else what went wrong."""
    for path, body in _ATTEMPTS:
        status, answer = await client.call_json("POST", path, {"model": model, **body})
        if status == 200:
            return None
        if status != 404:
            return f"the first generation failed with HTTP {status}: {_message(answer)}"
    # A model for other tasks, such as classification: there the engine's own word must do.
    status, _ = await client.call_json("GET", "/health")
    return None if status == 200 else f"the server's health check failed with HTTP {status}"


def _message(answer: Any) -> str:
    error = answer.get("error") if isinstance(answer, dict) else None
    text = error.get("message") if isinstance(error, dict) else None
    return str(text or answer).replace("\n", " ")[:_LONGEST_MESSAGE]
