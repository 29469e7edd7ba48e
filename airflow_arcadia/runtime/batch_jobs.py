"""Batches that the worker runs itself, behind the shape of OpenAI's Batch API.

``POST /v1/batches`` takes OpenAI's fields, ``input_file_id`` being a URI of the rows, and as extra fields
``output`` (URI of the answers), ``parameters`` and ``options`` (fields of
:class:`~airflow_arcadia.batch.BatchSpec`). The same job submitted again is the same batch. Each is written
down beside the lease, so that a worker launched again goes on with it from its committed segments.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from airflow_arcadia.batch import BatchSpec, Endpoint, Progress, run_batch_async
from airflow_arcadia.batch.transport.http_client import Client
from airflow_arcadia.exceptions import ArcadiaError, BatchInputError
from airflow_arcadia.runtime.log import say

ENDED = frozenset({"completed", "failed", "cancelled"})
PROGRESS_INTERVAL_S = 1.0


@dataclasses.dataclass
class Batch:
    """One batch, as it is written down.

    :param spec: fields of the :class:`~airflow_arcadia.batch.BatchSpec`.
    :param status: OpenAI's: ``in_progress``, ``cancelling``, ``completed``, ``failed``, ``cancelled``.
    :param progress: the last :class:`~airflow_arcadia.batch.Progress`.
    :param summary: the :class:`~airflow_arcadia.batch.BatchSummary` once completed.
    :param error: why it failed.
    """

    id: str
    endpoint: str
    spec: dict[str, Any]
    metadata: dict[str, str] | None
    created_at: int
    status: str = "in_progress"
    ended_at: int | None = None
    progress: dict[str, Any] | None = None
    summary: dict[str, Any] | None = None
    error: str | None = None

    def to_openai(self) -> dict[str, Any]:
        """OpenAI's Batch object, with ``progress`` and ``summary`` beside its own fields."""
        counts = self.summary or self.progress or {}
        done = self.status == "completed"
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": self.endpoint,
            "errors": _errors(self.error),
            "input_file_id": self.spec["input"],
            "completion_window": "24h",
            "status": self.status,
            "output_file_id": self.spec["output"] if done else None,
            "error_file_id": (self.summary or {}).get("errors"),
            "created_at": self.created_at,
            "in_progress_at": self.created_at,
            "completed_at": self.ended_at if done else None,
            "failed_at": self.ended_at if self.status == "failed" else None,
            "cancelled_at": self.ended_at if self.status == "cancelled" else None,
            "request_counts": {
                "total": counts.get("rows", counts.get("total", 0)),
                "completed": counts.get("ok", 0),
                "failed": counts.get("failed", 0),
            },
            "metadata": self.metadata,
            "progress": self.progress,
            "summary": self.summary,
        }


class BatchJobs:
    """All batches of this worker. One event loop.

    :param endpoint: the worker's own server.
    :param model: name it serves.
    :param folder: where batches are written down; None forgets them with the process.
    :param connect: makes the way to the endpoint.
    :param on_rows: called every second in which a batch got further.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        model: str,
        folder: Path | None,
        connect: Callable[[Endpoint], Client],
        on_rows: Callable[[], None] = lambda: None,
    ) -> None:
        self._endpoint, self._connect = endpoint, connect
        self._on_rows = on_rows
        self._model = model
        self._folder = folder
        self._batches: dict[str, Batch] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._stopping = False
        for path in sorted(folder.glob("batch_*.json")) if folder else ():
            batch = Batch(**json.loads(path.read_text(encoding="utf-8")))
            self._batches[batch.id] = batch

    @property
    def running(self) -> bool:
        """Whether a batch runs."""
        return bool(self._tasks)

    def resume(self) -> None:
        """Go on with what an earlier process of this worker did not end."""
        for batch in self._batches.values():
            if batch.status not in ENDED:
                say(f"going on with {batch.id}: {batch.spec['output']}")
                self._start(batch)

    def create(self, body: Any) -> Batch:
        """Start a batch, or find the same one. Raises :class:`BatchInputError` for a wrong request."""
        if not isinstance(body, dict):
            raise BatchInputError("The request is no JSON object.", what_to_do="Send OpenAI's fields.")
        spec = self._spec(body)
        text = json.dumps(spec.to_dict(), sort_keys=True, default=str)
        name = f"batch_{hashlib.sha256(text.encode()).hexdigest()[:24]}"
        batch = self._batches.get(name)
        if batch is None or batch.status in {"failed", "cancelled"}:
            endpoint = str(body.get("endpoint") or "/v1/chat/completions")
            batch = Batch(name, endpoint, spec.to_dict(), body.get("metadata"), int(time.time()))
            self._batches[name] = batch
            self._start(batch)
        return batch

    def find(self, name: str) -> Batch | None:
        """The batch of that id."""
        return self._batches.get(name)

    def list(self) -> list[Batch]:
        """All of them, newest first."""
        return sorted(self._batches.values(), key=lambda batch: -batch.created_at)

    def cancel(self, batch: Batch) -> None:
        """Stop after the rows in flight; what is committed is kept."""
        if batch.status not in ENDED:
            batch.status = "cancelling"
            self._write(batch)

    async def stop(self) -> None:
        """Let every batch commit what is answered, to be gone on with by a later process."""
        self._stopping = True
        if self._tasks:
            await asyncio.wait(self._tasks.values())

    def _spec(self, body: dict[str, Any]) -> BatchSpec:
        source = body.get("input_file_id")
        if not isinstance(source, str) or not source:
            raise BatchInputError(
                "The request has no input_file_id.", what_to_do="Set it to the URI of the rows."
            )
        output = body.get("output") or (body.get("metadata") or {}).get("output") or f"{source}.answers.jsonl"
        return BatchSpec.parse(
            body.get("options"),
            input=source,
            output=str(output),
            model=self._model,
            parameters=body.get("parameters") or {},
        )

    def _start(self, batch: Batch) -> None:
        self._write(batch)
        task = asyncio.create_task(self._run(batch))
        self._tasks[batch.id] = task
        task.add_done_callback(lambda _: self._tasks.pop(batch.id, None))

    async def _run(self, batch: Batch) -> None:
        def note(progress: Progress) -> None:
            if progress.done > (batch.progress or {}).get("done", 0):
                self._on_rows()
            batch.progress = progress.to_dict()

        try:
            summary = await run_batch_async(
                BatchSpec(**batch.spec),
                [self._endpoint],
                connect=self._connect,
                on_progress=note,
                progress_interval_s=PROGRESS_INTERVAL_S,
                should_stop=lambda: self._stopping or batch.status == "cancelling",
            )
        except ArcadiaError as error:
            if batch.status == "cancelling":
                self._end(batch, "cancelled")
            elif not self._stopping:
                self._end(batch, "failed", str(error))
        except Exception as error:
            # A batch must not take the server down, and its end must be seen by whoever waits for it.
            self._end(batch, "failed", f"{type(error).__name__}: {error}")
            raise
        else:
            batch.summary = summary.to_dict()
            self._end(batch, "completed")

    def _end(self, batch: Batch, status: str, error: str | None = None) -> None:
        batch.status, batch.error, batch.ended_at = status, error, int(time.time())
        say(f"{batch.id} {status}{f': {error}' if error else ''}")
        self._write(batch)

    def _write(self, batch: Batch) -> None:
        if self._folder is None:
            return
        path = self._folder / f"{batch.id}.json"
        draft = path.with_suffix(".tmp")
        # The lease's folder is gone when the worker is being torn down: then nobody will go on with it.
        with contextlib.suppress(FileNotFoundError):
            draft.write_text(json.dumps(dataclasses.asdict(batch)), encoding="utf-8")
            draft.replace(path)


def _errors(error: str | None) -> dict[str, Any] | None:
    if error is None:
        return None
    return {"object": "list", "data": [{"code": "batch_failed", "message": error, "line": None}]}
