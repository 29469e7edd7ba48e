"""Batches that the worker runs itself, behind the shape of OpenAI's Batch API.

``POST /v1/batches`` takes OpenAI's fields, and as extra fields ``parameters`` and ``options`` (fields of
:class:`~airflow_arcadia.batch.BatchSpec`). Its ``input_file_id`` is

- the id of an uploaded file: each request is a batch of its own, whose answers and error rows are files too;
- or a URI of the rows, with ``output`` as that of the answers: the same job submitted again is the same
  batch, and one that has ended is started again, which costs little where nothing changed and notices an
  input or output that did.

Each is recorded beside the lease, so that a worker launched again continues it from its committed segments.

Batches of the run's own tasks are trusted. Any other client may only name allowed URIs, and sees only the
batches of such clients.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import secrets
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from airflow_arcadia.batch import BatchSpec, Endpoint, Phase, Progress, run_batch_async
from airflow_arcadia.batch.input.source import QuotesInputError
from airflow_arcadia.batch.transport.http_client import Client
from airflow_arcadia.exceptions import ArcadiaError, BatchInputError
from airflow_arcadia.runtime.allowed_uris import AllowedUris
from airflow_arcadia.runtime.batch_record import Batch, FileIds, read_batches
from airflow_arcadia.runtime.batch_request import BatchRequest, parse
from airflow_arcadia.runtime.files.batch_files import BatchFiles
from airflow_arcadia.runtime.files.store import BATCH, FileRefused, FileStore, StoredFile, new_id
from airflow_arcadia.runtime.files.upload import lifetime
from airflow_arcadia.runtime.log import say
from airflow_arcadia.runtime.worker_metrics import BatchCounters

PROGRESS_INTERVAL_S = 1.0
MAX_CLIENT_BATCHES = 1000
MAX_RUNNING_CLIENT_BATCHES = 16
"""Of clients that are not the run's own tasks."""


class TooManyBatches(Exception):
    """A client has to wait until other batches have ended."""


class BatchJobs:
    """All batches of this worker. One event loop.

    :param endpoint: the worker's own server.
    :param model: name it serves.
    :param folder: where batches are recorded; None forgets them with the process.
    :param connect: makes the client of the endpoint.
    :param allowed: what clients may name.
    :param store: what clients upload, and what their batches write.
    :param storage: options of file systems by protocol, for every batch.
    :param counters: count what the batches do.
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
        store: FileStore,
        storage: Mapping[str, Mapping[str, Any]] | None = None,
        counters: BatchCounters | None = None,
        on_rows: Callable[[], None] = lambda: None,
    ) -> None:
        self._endpoint, self._connect, self._allowed = endpoint, connect, allowed
        self._on_rows = on_rows
        self._storage = storage or {}
        self._counters = counters or BatchCounters()
        self._model = model
        self._folder = folder
        self._batches: dict[str, Batch] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._cancelled: set[str] = set()
        """Batches that run and were cancelled, also those that were submitted again since."""
        self._stopping = False
        self._progress_at: float | None = None
        for batch in sorted(read_batches(folder), key=lambda batch: batch.created_at):
            self._batches[batch.id] = batch
        self._store, self._files = store, BatchFiles(store)
        store.in_use = self.uses
        store.remove_work_folders(lambda name: name in self._batches and not self._batches[name].has_ended)

    @property
    def running(self) -> bool:
        """Whether a batch runs."""
        return bool(self._tasks)

    @property
    def seconds_since_progress(self) -> float | None:
        """Seconds since a batch last answered a row; None where none has yet."""
        return None if self._progress_at is None else time.monotonic() - self._progress_at

    @property
    def number_running(self) -> int:
        """How many batches run."""
        return len(self._tasks)

    def resume(self) -> None:
        """Continue what an earlier process of this worker did not end.

        Batches may have been submitted before the worker is ready: those run already.
        """
        for batch in self._batches.values():
            if not batch.has_ended and batch.id not in self._tasks:
                say(f"continuing {batch.id}: {batch.spec['output']}")
                self._start(batch)

    def create(self, body: object, *, trusted: bool, submission: str | None = None) -> Batch:
        """Start a batch, or return the same one that runs. One that is being cancelled goes on.

        :param trusted: whether one of the run's own tasks asks for it. Only other batches expire: a task has
            time limits of its own.
        :param submission: what the client calls this submission; only a :meth:`cancel` that says the same, or
            nothing, ends the batch from now on.

        Raises :class:`TooManyBatches`, and for a wrong request
        :class:`~airflow_arcadia.exceptions.BatchInputError`, ``ArcadiaConfigError``, ``FormError`` or
        :class:`~airflow_arcadia.runtime.files.store.FileRefused`.
        """
        request = parse(body, self._model, trusted=trusted)
        now = int(time.time())
        if request.upload is not None:
            batch = self._of_upload(request, request.upload, now, trusted=trusted)
        else:
            if not trusted:
                self._check_uris(request.spec)
            name = _name(request.spec, trusted=trusted)
            found = self._batches.get(name)
            if found is not None and not found.has_ended:
                self._adopt(found, submission)
                return found
            self._forget_oldest(name, trusted=trusted)
            batch = Batch(name, request.endpoint, request.spec.to_dict(), request.metadata, now)
        batch.trusted, batch.submission = trusted, submission
        if request.window is not None and not trusted:
            batch.window, seconds = request.window
            batch.expires_at = now + seconds
        self._batches.pop(batch.id, None)
        self._batches[batch.id] = batch
        self._start(batch)
        return batch

    def _of_upload(self, request: BatchRequest, upload: str, now: int, *, trusted: bool) -> Batch:
        """A new batch with files of its own."""
        file = self._store.find(upload)
        if file is None or file.purpose != BATCH:
            raise BatchInputError(
                "input_file_id names no file of purpose 'batch'.", what_to_do="Upload the rows to /v1/files."
            )
        life = None if request.output_life is None else lifetime(*request.output_life)
        name = f"batch_{secrets.token_hex(16)}"
        self._forget_oldest(name, trusted=trusted)
        if not self._store.has_space():
            raise FileRefused(
                413, "There is no space for the batch's output. Delete files that are not needed."
            )
        files = FileIds(upload, new_id(), new_id(), life)
        spec = self._files.spec(name, upload, request.spec)
        return Batch(name, request.endpoint, spec, request.metadata, now, files=files)

    def find(self, name: str, *, trusted: bool) -> Batch | None:
        """The batch of that id, if such a client may see it."""
        batch = self._batches.get(name)
        return batch if batch is not None and (trusted or not batch.trusted) else None

    def list(self, *, trusted: bool) -> list[Batch]:
        """All that such a client may see, newest first."""
        return [batch for batch in reversed(self._batches.values()) if trusted or not batch.trusted]

    def cancel(self, batch: Batch, submission: str | None = None) -> None:
        """Stop after the rows in flight; what is committed is kept.

        :param submission: whose end this is. Airflow ends the waiting of a task that was cleared some seconds
            after the task's next attempt has begun, and then this is not the batch's last submission.
        """
        if submission not in {None, batch.submission}:
            say(f"{batch.id} was submitted again, and is not cancelled for who submitted it before")
        elif not batch.has_ended and batch.status != "cancelling":
            batch.status, batch.cancelling_at = "cancelling", int(time.time())
            self._cancelled.add(batch.id)
            self._write(batch)

    async def stop(self) -> None:
        """Let every batch commit what is answered, to be gone on with by a later process."""
        self._stopping = True
        if self._tasks:
            await asyncio.wait(self._tasks.values())

    # -- files of batches that run ---------------------------------------------------------------------

    def uses(self, file_id: str) -> bool:
        """Whether a batch that runs reads or writes the file of that id."""
        return any(
            batch.files is not None
            and not batch.has_ended
            and file_id in {batch.files.input, batch.files.output, batch.files.error}
            for batch in list(self._batches.values())
        )

    def unfinished_files(self) -> Sequence[StoredFile]:
        """The files that batches are writing."""
        return [file for batch in self._batches.values() for file in self._files.unfinished(batch)]

    @contextlib.contextmanager
    def reading(self, file_id: str) -> Iterator[Iterator[bytes] | None]:
        """The lines so far of a file that a batch is writing; None when none does. Reading them blocks."""
        for batch in self._batches.values():
            if file_id in {file.id for file in self._files.unfinished(batch)}:
                try:
                    with self._files.reading(batch, file_id) as lines:
                        yield lines
                finally:
                    if batch.has_ended:
                        asyncio.get_running_loop().run_in_executor(None, self._files.clean, batch)
                return
        yield None

    # -- inner workings --------------------------------------------------------------------------------

    def _check_uris(self, spec: BatchSpec) -> None:
        self._allowed.check_input(spec.input)
        self._allowed.check_output(spec.output)

    def _forget_oldest(self, name: str, *, trusted: bool) -> None:
        """Forget the oldest ended batches of clients. Raises :class:`TooManyBatches` where too many run."""
        if trusted:
            return
        others = [batch for batch in self._batches.values() if not batch.trusted and batch.id != name]
        running = [batch for batch in others if not batch.has_ended]
        if len(running) >= MAX_RUNNING_CLIENT_BATCHES:
            raise TooManyBatches(f"{len(running)} batches run already; wait until one has ended.")
        ended = [batch for batch in others if batch.has_ended]
        for batch in ended[: max(0, len(others) - MAX_CLIENT_BATCHES + 1)]:
            del self._batches[batch.id]
            if self._folder is not None:
                (self._folder / f"{batch.id}.json").unlink(missing_ok=True)

    def _adopt(self, batch: Batch, submission: str | None) -> None:
        """Note who submitted the batch last, and let one go on that is being cancelled."""
        batch.submission = submission
        if batch.status == "cancelling":
            batch.status, batch.cancelling_at = "in_progress", None
        self._write(batch)

    def _start(self, batch: Batch) -> None:
        self._write(batch)
        task = asyncio.create_task(self._run(batch))
        self._tasks[batch.id] = task
        task.add_done_callback(lambda task: self._forget(batch, task))

    def _forget(self, batch: Batch, task: asyncio.Task[None]) -> None:
        if self._tasks.get(batch.id) is task:  # not that of the batch submitted again since
            del self._tasks[batch.id]
        if not task.cancelled() and (error := task.exception()):
            say(
                f"{batch.id} {batch.status}, which could not be recorded in {self._folder}: {error}. A "
                "worker that is launched again under this lease runs it once more and finds its output."
            )

    async def _run(self, batch: Batch) -> None:
        self._cancelled.discard(batch.id)
        try:
            if not batch.trusted and batch.files is None:  # a worker launched again may allow less
                self._check_uris(BatchSpec(**batch.spec))
            summary = await run_batch_async(
                BatchSpec(**batch.spec, storage=self._storage),
                [self._endpoint],
                connect=self._connect,
                on_progress=lambda progress: self._note(batch, progress),
                progress_interval_s=PROGRESS_INTERVAL_S,
                should_stop=lambda: self._stopping or batch.status == "cancelling" or _is_late(batch),
                on_phase=lambda phase: self._enter(batch, phase),
            )
        except ArcadiaError as error:
            if batch.status == "cancelling":
                await self._end(batch, "cancelled")
            elif self._stopping:
                return
            elif _is_late(batch):
                await self._end(batch, "expired")
            elif batch.id in self._cancelled:  # and submitted again before it had stopped
                await self._run(batch)
            else:
                say(f"{batch.id}: {error}")
                await self._end(batch, "failed", _reason(error, batch))
        except Exception as error:  # noqa: BLE001 - it must not take the server down; whoever waits is told
            say("".join(traceback.format_exception(error)).rstrip())
            await self._end(batch, "failed", _reason(error, batch))
        else:
            batch.summary = summary.to_dict()
            await self._end(batch, "completed")

    def _note(self, batch: Batch, progress: Progress) -> None:
        self._counters.note(batch.progress, progress, time.time())
        if progress.done > (batch.progress or {}).get("done", 0):
            self._progress_at = time.monotonic()
            self._on_rows()
        batch.progress = progress.to_dict()

    def _enter(self, batch: Batch, phase: Phase) -> None:
        now = int(time.time())
        if phase is Phase.IN_PROGRESS:
            batch.in_progress_at = batch.in_progress_at or now
        else:
            batch.finalizing_at = now
        if batch.status != "cancelling":
            batch.status = phase.value
        self._write(batch)

    async def _end(self, batch: Batch, status: str, error: str | None = None) -> None:
        if batch.files is not None:
            try:
                batch.results = await asyncio.to_thread(self._files.publish, batch, batch.files, status)
            except Exception as problem:  # noqa: BLE001 - it must not take the server down; the client is told
                say("".join(traceback.format_exception(problem)).rstrip())
                status, error = (
                    "failed",
                    error or f"Its results could not be stored: {type(problem).__name__}.",
                )
        batch.status, batch.error, batch.ended_at = status, error, int(time.time())
        say(f"{batch.id} {status}")
        self._write(batch)
        if batch.files is not None:
            await asyncio.to_thread(self._files.clean, batch)

    def _write(self, batch: Batch) -> None:
        if self._folder is not None:
            batch.write(self._folder)


def _is_late(batch: Batch) -> bool:
    return batch.expires_at is not None and time.time() >= batch.expires_at


def _name(spec: BatchSpec, *, trusted: bool) -> str:
    text = json.dumps([spec.to_dict(), trusted], sort_keys=True, default=str)
    return f"batch_{hashlib.sha256(text.encode()).hexdigest()[:24]}"


def _reason(error: Exception, batch: Batch) -> str:
    """Why a batch failed; a client is not told what may quote a file or another server's answer."""
    if batch.trusted:
        return str(error) if isinstance(error, ArcadiaError) else f"{type(error).__name__}: {error}"
    if not isinstance(error, ArcadiaError) or isinstance(error, QuotesInputError):
        return f"The input or output could not be used ({type(error).__name__}); the worker's log says why."
    if batch.files is None:
        return str(error)
    # The client knows its files by their ids, and not where the worker keeps them.
    told = str(error).replace(batch.spec["input"], batch.files.input)
    return told.replace(str(Path(batch.spec["output"]).parent), batch.id)
