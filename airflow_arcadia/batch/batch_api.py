"""Client of the batches that a worker runs itself (OpenAI's Batch API): submit, get, cancel.

:func:`judge` is a pure decision about what an answer means; the task and the trigger share it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import aiohttp

from airflow_arcadia.batch.progress import Progress
from airflow_arcadia.batch.spec import BatchSpec, Endpoint
from airflow_arcadia.exceptions import ArcadiaConfigError, BatchError

_TIMEOUT = aiohttp.ClientTimeout(total=30)
TOKEN_HEADER = "Arcadia-Batch-Token"  # noqa: S105 - a header's name
SUBMISSION = "submission"
"""Query parameter of a submission and of a cancellation."""
_FIELDS_OF_REQUEST = ("input", "output", "model", "parameters")


@dataclass(frozen=True)
class Running:
    """The batch is running. ``progress`` is None before the first rows, and where it makes no sense."""

    progress: Progress | None


@dataclass(frozen=True)
class Completed:
    """The batch is finished. ``summary`` is a :class:`~airflow_arcadia.batch.BatchSummary` as a dict."""

    summary: Mapping[str, Any]


@dataclass(frozen=True)
class Ended:
    """The batch ended before it was finished.

    :param what: one sentence.
    """

    what: str


State = Running | Completed | Ended


def judge(batch: Mapping[str, Any]) -> State:
    """The state that a Batch object describes."""
    status = batch.get("status")
    if status == "completed":
        return Completed(batch.get("summary") or {})
    if status in {"failed", "cancelled", "expired"}:
        errors = (batch.get("errors") or {}).get("data") or [{}]
        return Ended(errors[0].get("message") or f"The batch was {status}.")
    raw = batch.get("progress")
    try:
        return Running(Progress.from_dict(raw) if raw else None)
    except ArcadiaConfigError:
        return Running(None)  # it is only shown: a batch that runs must not fail by it


class RemoteBatches:
    """The Batch API of one worker.

    :param endpoint: the worker.
    :param token: by which the worker knows the run's own tasks, whose batches may name any URI.
    """

    def __init__(self, endpoint: Endpoint, token: str | None = None) -> None:
        self._base = f"{endpoint.url.rstrip('/')}/v1/batches"
        self._headers = {"Authorization": f"Bearer {endpoint.api_key}"} if endpoint.api_key else {}
        if token:
            self._headers[TOKEN_HEADER] = token

    async def submit(self, spec: BatchSpec, submission: str | None = None) -> str:
        """Start the batch, or find the same one; returns its id.

        :param submission: tells this attempt's submission of the batch from those of others, for
            :meth:`cancel`.

        Raises :class:`BatchError` when the worker does not take it.
        """
        whole = spec.to_dict()
        defaults = BatchSpec(input="-", output="-", model="").to_dict()
        options = {
            key: value
            for key, value in whole.items()
            if key not in _FIELDS_OF_REQUEST and value != defaults[key]
        }
        body = {
            "input_file_id": spec.input,
            "output": spec.output,
            "parameters": dict(spec.parameters),
            "options": options,
            "endpoint": "/v1/chat/completions",
        }
        return str((await self._call("POST", _query(submission), body))["id"])

    async def get(self, name: str) -> dict[str, Any]:
        """The Batch object. Raises :class:`BatchError` when it cannot be read."""
        return await self._call("GET", f"/{name}")

    async def cancel(self, name: str, submission: str | None = None) -> dict[str, Any]:
        """Cancel the batch; committed rows are kept.

        :param submission: only where nobody has submitted the batch since. Without it, whoever did.
        """
        return await self._call("POST", f"/{name}/cancel{_query(submission)}", {})

    async def _call(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        try:
            async with (
                aiohttp.ClientSession(headers=self._headers, timeout=_TIMEOUT) as session,
                session.request(method, self._base + path, json=body) as response,
            ):
                answer: dict[str, Any] = await response.json(content_type=None)
                if response.status == 200:
                    return answer
                if response.status == 404 and path.startswith("/"):
                    raise BatchUnknownError(
                        "The worker does not know the batch any more: it was started anew meanwhile.",
                        what_to_do="Clear this task: it goes on with the rest.",
                        still_running="The worker is running; the rows committed so far are kept.",
                    )
                said = (answer.get("error") or {}).get("message") or f"HTTP {response.status}"
                raise BatchRefusedError(
                    f"The worker refuses the batch: {said}",
                    what_to_do="Correct what the message names.",
                    still_running="The worker is still running.",
                )
        except (aiohttp.ClientError, asyncio.TimeoutError, ValueError, AttributeError) as error:
            raise BatchError(
                f"The worker's batches cannot be read at {self._base}: {error or type(error).__name__}.",
                what_to_do="Check that the worker is alive; a retry finds the batch again.",
                still_running="The batch may still be running there.",
            ) from error


def _query(submission: str | None) -> str:
    return f"?{urlencode({SUBMISSION: submission})}" if submission else ""


class BatchUnknownError(BatchError):
    """The worker has no batch of that id: it has been started again, and keeps batches in memory alone."""


class BatchRefusedError(BatchError):
    """The worker refused the batch."""

    retryable = False
