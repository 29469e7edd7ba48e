"""Batches that the worker runs itself, behind the shape of OpenAI's Batch API.

``POST /v1/batches`` takes OpenAI's fields, ``input_file_id`` being a URI of the rows, and as extra fields
``output`` (URI of the answers), ``parameters`` and ``options`` (fields of
:class:`~airflow_arcadia.batch.BatchSpec`). The same job submitted again is the same batch; one that has ended
is started again, which costs little where nothing changed and notices an input or output that did. Each is
recorded beside the lease, so that a worker launched again continues it from its committed segments.

Batches of the run's own tasks are trusted. Any other client may only name allowed URIs, and sees only the
batches of such clients.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import json
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from airflow_arcadia.batch import BatchSpec, Endpoint, Progress, run_batch_async
from airflow_arcadia.batch.input.source import QuotesInputError
from airflow_arcadia.batch.transport.http_client import Client
from airflow_arcadia.exceptions import ArcadiaError
from airflow_arcadia.runtime.allowed_uris import AllowedUris
from airflow_arcadia.runtime.batch_request import parse
from airflow_arcadia.runtime.log import say

ENDED = frozenset({"completed", "failed", "cancelled"})
PROGRESS_INTERVAL_S = 1.0
MAX_CLIENT_BATCHES = 1000
MAX_RUNNING_CLIENT_BATCHES = 16
"""Of clients that are not the run's own tasks."""


class TooManyBatches(Exception):
    """A client has to wait until other batches have ended."""


@dataclasses.dataclass
class Batch:
    """One batch, as it is recorded.

    :param spec: fields of the :class:`~airflow_arcadia.batch.BatchSpec`.
    :param status: OpenAI's: ``in_progress``, ``cancelling``, ``completed``, ``failed``, ``cancelled``.
    :param progress: the last :class:`~airflow_arcadia.batch.Progress`.
    :param summary: the :class:`~airflow_arcadia.batch.BatchSummary` once completed.
    :param error: why it failed.
    :param trusted: whether one of the run's own tasks asked for it.
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
    trusted: bool = False

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
    :param folder: where batches are recorded; None forgets them with the process.
    :param connect: makes the client of the endpoint.
    :param allowed: what clients may name.
    :param on_rows: called every second in which a batch got further.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        model: str,
        folder: Path | None,
        *,
        connect: Callable[[Endpoint], Client],
        allowed: AllowedUris,
        on_rows: Callable[[], None] = lambda: None,
    ) -> None:
        self._endpoint, self._connect, self._allowed = endpoint, connect, allowed
        self._on_rows = on_rows
        self._model = model
        self._folder = folder
        self._batches: dict[str, Batch] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._stopping = False
        self._progress_at: float | None = None
        for batch in sorted(_recorded(folder), key=lambda batch: batch.created_at):
            self._batches[batch.id] = batch

    @property
    def running(self) -> bool:
        """Whether a batch runs."""
        return bool(self._tasks)

    @property
    def seconds_since_progress(self) -> float | None:
        """Seconds since a batch last answered a row; None where none has yet."""
        return None if self._progress_at is None else time.monotonic() - self._progress_at

    def resume(self) -> None:
        """Continue what an earlier process of this worker did not end."""
        for batch in self._batches.values():
            if batch.status not in ENDED:
                say(f"continuing {batch.id}: {batch.spec['output']}")
                self._start(batch)

    def create(self, body: object, *, trusted: bool) -> Batch:
        """Start a batch, or return the same one that runs.

        :param trusted: whether one of the run's own tasks asks for it.

        Raises :class:`TooManyBatches`, and for a wrong request
        :class:`~airflow_arcadia.exceptions.BatchInputError` or ``ArcadiaConfigError``.
        """
        request = parse(body, self._model, trusted=trusted)
        if not trusted:
            self._check_uris(request.spec)
        name = _name(request.spec, trusted=trusted)
        batch = self._batches.get(name)
        if batch is None or batch.status in ENDED:
            if not trusted:
                self._make_room(name)
            batch = Batch(
                name,
                request.endpoint,
                request.spec.to_dict(),
                request.metadata,
                int(time.time()),
                trusted=trusted,
            )
            self._batches.pop(name, None)
            self._batches[name] = batch
            self._start(batch)
        return batch

    def find(self, name: str, *, trusted: bool) -> Batch | None:
        """The batch of that id, if such a client may see it."""
        batch = self._batches.get(name)
        return batch if batch is not None and (trusted or not batch.trusted) else None

    def list(self, *, trusted: bool) -> list[Batch]:
        """All that such a client may see, newest first."""
        return [batch for batch in reversed(self._batches.values()) if trusted or not batch.trusted]

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

    def _check_uris(self, spec: BatchSpec) -> None:
        self._allowed.check_input(spec.input)
        self._allowed.check_output(spec.output)

    def _make_room(self, name: str) -> None:
        """Forget the oldest ended batches of clients. Raises :class:`TooManyBatches` where too many run."""
        others = [batch for batch in self._batches.values() if not batch.trusted and batch.id != name]
        running = [batch for batch in others if batch.status not in ENDED]
        if len(running) >= MAX_RUNNING_CLIENT_BATCHES:
            raise TooManyBatches(f"{len(running)} batches run already; wait until one has ended.")
        ended = [batch for batch in others if batch.status in ENDED]
        for batch in ended[: max(0, len(others) - MAX_CLIENT_BATCHES + 1)]:
            del self._batches[batch.id]
            if self._folder is not None:
                (self._folder / f"{batch.id}.json").unlink(missing_ok=True)

    def _start(self, batch: Batch) -> None:
        self._write(batch)
        task = asyncio.create_task(self._run(batch))
        self._tasks[batch.id] = task
        task.add_done_callback(lambda _: self._tasks.pop(batch.id, None))

    async def _run(self, batch: Batch) -> None:
        def note(progress: Progress) -> None:
            if progress.done > (batch.progress or {}).get("done", 0):
                self._progress_at = time.monotonic()
                self._on_rows()
            batch.progress = progress.to_dict()

        try:
            if not batch.trusted:  # a worker launched again may allow less
                self._check_uris(BatchSpec(**batch.spec))
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
                say(f"{batch.id}: {error}")
                self._end(batch, "failed", _reason(error, trusted=batch.trusted))
        except Exception as error:  # noqa: BLE001 - it must not take the server down; whoever waits is told
            say("".join(traceback.format_exception(error)).rstrip())
            self._end(batch, "failed", _reason(error, trusted=batch.trusted))
        else:
            batch.summary = summary.to_dict()
            self._end(batch, "completed")

    def _end(self, batch: Batch, status: str, error: str | None = None) -> None:
        batch.status, batch.error, batch.ended_at = status, error, int(time.time())
        say(f"{batch.id} {status}")
        self._write(batch)

    def _write(self, batch: Batch) -> None:
        if self._folder is None:
            return
        path = self._folder / f"{batch.id}.json"
        draft = path.with_suffix(".tmp")
        # The lease's folder is gone when the worker is being torn down: then nobody will continue it.
        with contextlib.suppress(FileNotFoundError):
            draft.write_text(json.dumps(dataclasses.asdict(batch)), encoding="utf-8")
            draft.replace(path)


def _recorded(folder: Path | None) -> Iterator[Batch]:
    for path in folder.glob("batch_*.json") if folder else ():
        try:
            yield Batch(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            say(f"{path.name} is not the record of a batch and is left alone: {error}")


def _name(spec: BatchSpec, *, trusted: bool) -> str:
    text = json.dumps([spec.to_dict(), trusted], sort_keys=True, default=str)
    return f"batch_{hashlib.sha256(text.encode()).hexdigest()[:24]}"


def _reason(error: Exception, *, trusted: bool) -> str:
    """Why a batch failed; a client is not told what may quote a file or another server's answer."""
    if trusted:
        return str(error) if isinstance(error, ArcadiaError) else f"{type(error).__name__}: {error}"
    if isinstance(error, ArcadiaError) and not isinstance(error, QuotesInputError):
        return str(error)
    return f"The input or output could not be used ({type(error).__name__}); the worker's log says why."


def _errors(error: str | None) -> dict[str, Any] | None:
    if error is None:
        return None
    return {"object": "list", "data": [{"code": "batch_failed", "message": error, "line": None}]}
