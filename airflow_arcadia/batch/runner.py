"""Run a batch: keep many rows in flight to every endpoint, commit what comes back, finalise."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from airflow_arcadia.batch.claim import claim
from airflow_arcadia.batch.failure_budget import exceeded, too_many_failed
from airflow_arcadia.batch.input.ordering import order_ready, read_order, write_order
from airflow_arcadia.batch.input.row_index import Rows
from airflow_arcadia.batch.input.row_parser import Shape
from airflow_arcadia.batch.memory_budget import ByteBudget, default_bytes_in_flight
from airflow_arcadia.batch.output.job import Job
from airflow_arcadia.batch.output.merge import finalise, summarise
from airflow_arcadia.batch.output.suspect_notes import SuspectNotes, read_suspects
from airflow_arcadia.batch.output.writer import SegmentWriter
from airflow_arcadia.batch.prepare import Finished, Ready, prepare
from airflow_arcadia.batch.progress import Meter, Phase, Progress
from airflow_arcadia.batch.row_queue import RowQueue
from airflow_arcadia.batch.sender import Sender
from airflow_arcadia.batch.spec import BatchSpec, BatchSummary, Endpoint
from airflow_arcadia.batch.storage import explain, full_storage, is_full, temporary_path
from airflow_arcadia.batch.supervision import end_tasks, supervised
from airflow_arcadia.batch.suspects import Suspects
from airflow_arcadia.batch.transport.hang_detector import watch
from airflow_arcadia.batch.transport.http_client import Client
from airflow_arcadia.batch.transport.served_model import served_model
from airflow_arcadia.batch.transport.server import Server, connect_http, the_only_model, unreachable
from airflow_arcadia.exceptions import BatchError, BatchInputError

log = logging.getLogger(__name__)

_LOOK = 0.002
"""Seconds between two looks for the first endpoint that is up."""
_TICK = 0.1
"""Seconds between two looks at what no answer triggers: a wish to stop, late answers, progress."""


def run_batch(
    spec: BatchSpec,
    endpoints: Sequence[Endpoint],
    *,
    on_progress: Callable[[Progress], None] | None = None,
    progress_interval_s: float = 5.0,
    should_stop: Callable[[], bool] | None = None,
) -> BatchSummary:
    """Answer every row and return the summary; :func:`run_batch_async` for code without an event loop."""
    return asyncio.run(
        run_batch_async(
            spec,
            endpoints,
            on_progress=on_progress,
            progress_interval_s=progress_interval_s,
            should_stop=should_stop,
        )
    )


async def run_batch_async(
    spec: BatchSpec,
    endpoints: Sequence[Endpoint],
    *,
    on_progress: Callable[[Progress], None] | None = None,
    progress_interval_s: float = 5.0,
    should_stop: Callable[[], bool] | None = None,
    connect: Callable[[Endpoint], Client] = connect_http,
    on_phase: Callable[[Phase], None] = lambda _: None,
) -> BatchSummary:
    """Answer every row and return the summary.

    A batch that was interrupted goes on after its committed rows; one that is finished returns its summary
    again and sends nothing.

    :param on_progress: called with the progress: before the first row is sent, then every
        ``progress_interval_s`` seconds, and at the end. An error it raises is logged, and the batch goes on.
    :param should_stop: asked several times a second; True commits what is answered and ends the batch.
    :param connect: makes the client for an endpoint.
    :param on_phase: called when the validated input's rows are about to be sent, and when all of them are
        done and the output is about to be written.

    Raises :class:`BatchInputError` for input, output or parameters that cannot be used, and
    :class:`BatchError` when the batch stopped before its end. Cancelling it commits what is answered.
    """
    if not endpoints:
        raise BatchInputError("The batch has no endpoint.", what_to_do="Give it one or more.")
    ready = await asyncio.to_thread(prepare, spec)
    if isinstance(ready, Finished) and not spec.model:
        # Finished by the only model that was served then: another one now is another batch.
        served = await served_model(connect(endpoint) for endpoint in endpoints)
        if served is not None and served != ready.manifest.identity.model:
            ready = await asyncio.to_thread(prepare, replace(spec, model=served))
    if isinstance(ready, Finished):
        return ready.summary
    clients = {endpoint: connect(endpoint) for endpoint in endpoints}
    run = _Run(spec, ready, clients, should_stop, on_phase)
    run.report_to(on_progress, progress_interval_s)
    try:
        return await run.run()
    except Exception as error:
        if is_full(error):
            what = f"{full_storage(ready.place.parts, error)} is full."
            raise BatchError(
                what,
                what_to_do="Free space there and run the batch again: it goes on from there.",
                still_running=await _committed(run, ready),
            ) from error
        told = explain(error, f"The output {ready.place.uri}")
        if told is None:
            raise
        told.still_running = await _committed(run, ready)
        raise told from error


async def _committed(run: _Run, ready: Ready) -> str:
    try:
        rows = await asyncio.to_thread(run.committed)
    except Exception as error:  # noqa: BLE001 - said beside the error that matters more
        log.warning("How many rows are committed cannot be read: %s", error)
        return f"What was committed is kept in {ready.place.parts.uri}."
    return f"{rows} rows are committed in {ready.place.parts.uri}."


class _Run:
    """One attempt. What ends it early goes through :meth:`_end`; the first reason counts."""

    def __init__(
        self,
        spec: BatchSpec,
        ready: Ready,
        clients: Mapping[Endpoint, Client],
        should_stop: Callable[[], bool] | None,
        on_phase: Callable[[Phase], None],
    ) -> None:
        self._on_phase = on_phase
        self._spec, self._ready, self._should_stop = spec, ready, should_stop or (lambda: False)
        # A probe of an engine that is busy waits behind the rows in flight.
        answer_timeout = spec.hang_timeout_s or spec.request_timeout_s
        self._servers = [
            Server(endpoint, client, spec.max_in_flight, answer_timeout, self._server_changed, self._end)
            for endpoint, client in clients.items()
        ]
        self._memory = ByteBudget(spec.max_in_flight_bytes or default_bytes_in_flight())
        self._error: BaseException | None = None
        self._ended = asyncio.Event()
        self._queue: RowQueue | None = None
        self._model = spec.model
        self._job: Job | None = None
        self._on_progress: Callable[[Progress], None] | None = None
        self._progress_interval = 0.0

    def report_to(self, on_progress: Callable[[Progress], None] | None, interval: float) -> None:
        """Whom to tell the progress, and every how many seconds."""
        self._on_progress, self._progress_interval = on_progress, interval

    def committed(self) -> int:
        """Rows that a next attempt will find done."""
        if self._job is None:
            return 0
        return self._job.committed()

    async def run(self) -> BatchSummary:
        spec, place = self._spec, self._ready.place
        try:
            await self._reach_servers()
            claimed = await asyncio.to_thread(self._claim)
            if isinstance(claimed, Finished):
                # Another attempt was faster.
                return claimed.summary
            job, suspects = claimed
            resumed = job.done
            while True:
                self._on_phase(Phase.IN_PROGRESS)
                await self._answer_pending(job, suspects)
                self._on_phase(Phase.FINALIZING)
                summary = summarise(place, job, spec, resumed)
                damaged = await asyncio.to_thread(
                    finalise, place, job, summary, keep_segments=spec.keep_segments
                )
                if not damaged:
                    return summary
                for name in damaged:
                    log.warning("Segment %s is damaged: its rows are answered again", name)
                    await asyncio.to_thread(job.forget, name)
        finally:
            for server in self._servers:
                await server.close()

    async def _reach_servers(self) -> None:
        """Wait until an endpoint that serves the batch's model is up."""
        began = time.monotonic()
        for server in self._servers:
            server.expect(self._model)
            server.reach()
        while not any(server.up for server in self._servers):
            self._look_for_stop(0)
            if time.monotonic() - began > self._spec.endpoint_timeout_s:
                raise unreachable(self._servers, self._spec.endpoint_timeout_s)
            if self._error is not None:
                raise self._error
            await asyncio.sleep(_LOOK)
        if not self._model:
            self._model = the_only_model(next(server for server in self._servers if server.up))
            for server in self._servers:
                server.expect(self._model)

    def _claim(self) -> tuple[Job, Suspects] | Finished:
        """Take over the job's folder, with everything in it that sending rows needs."""
        spec = self._spec
        self._shape = Shape(spec, self._model)
        job = claim(spec, self._ready, self._model)
        if isinstance(job, Finished):
            return job
        self._job = job
        self._order = self._prepare_order(job) if spec.ordering == "prefix" else None
        if spec.retry_failed_only:
            job.reopen_failed()
        elif (what := exceeded(spec, job.counts, job.manifest.rows)) is not None:
            raise too_many_failed(what, None, job.folder.uri)
        return job, read_suspects(job)

    def _prepare_order(self, job: Job) -> Path:
        parts, name, rows = job.folder, job.manifest.order, job.manifest.rows
        with contextlib.suppress(FileNotFoundError):
            path = parts.fetch(name)
            if order_ready(path, rows):
                return path
        local = temporary_path(parts, name)
        reader = Rows(self._ready.rows, self._ready.index)
        try:
            write_order(rows, lambda row: self._shape.parse(reader.read(row), row), local)
            parts.publish(local, name)
        finally:
            reader.close()
            local.unlink(missing_ok=True)
        return parts.fetch(name)

    async def _answer_pending(self, job: Job, suspects: Suspects) -> None:
        """Until no row is to do any more. Raises what ended it early, after committing what is answered."""
        spec = self._spec
        writer = SegmentWriter(job, spec.segment_rows, spec.segment_seconds)
        meter = Meter(job.manifest.rows, job.counts, time.monotonic())
        self._report(meter.progress(job.counts, time.monotonic()))
        rows = Rows(self._ready.rows, self._ready.index)
        pending = job.pending(None if self._order is None else read_order(self._order))
        queue = self._queue = RowQueue(pending, self._servers, suspects)
        notes = SuspectNotes(job, queue.suspects)
        sender = Sender(
            spec,
            job,
            self._shape,
            rows,
            queue,
            writer,
            self._memory,
            self._end,
            lambda: self._error is not None,
            notes.changed,
        )
        tasks = [self._help(sender.run(server)) for server in self._servers]
        helpers = [self._help(self._tick(job, writer, meter)), self._help(notes.keep())]
        if spec.hang_timeout_s:
            helpers += [self._help(watch(server, spec.hang_timeout_s)) for server in self._servers]
        ended = asyncio.get_running_loop().create_task(self._wait_for_end())
        helpers.append(ended)
        try:
            left = set(tasks)
            while left and not self._ended.is_set():
                done, _ = await asyncio.wait({*left, ended}, return_when=asyncio.FIRST_COMPLETED)
                left -= done
        except BaseException as error:  # noqa: BLE001 - raised again below
            self._end(error)
        finally:
            await end_tasks([*helpers, *tasks])
            sender.settle_all()
            self._queue = None
            rows.close()
        await notes.write()
        try:
            await self._commit_rest(writer)
        finally:
            self._report(meter.progress(job.counts, time.monotonic()))

    async def _wait_for_end(self) -> None:
        await self._ended.wait()

    def _help(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run what the rows cannot do without: an error in it ends the batch."""
        return supervised(work, self._end)

    async def _commit_rest(self, writer: SegmentWriter) -> None:
        try:
            if writer.error is None:
                await writer.flush(patient=self._error is None)
        except Exception as error:
            if self._error is None:
                raise
            log.warning("The last answers could not be committed: %s", error)
        if reason := self._error or writer.error:
            raise reason

    async def _tick(self, job: Job, writer: SegmentWriter, meter: Meter) -> None:
        """What no answer triggers."""
        spec = self._spec
        last_alive = last_report = time.monotonic()
        while True:
            await asyncio.sleep(_TICK)
            now = time.monotonic()
            writer.tick()
            if writer.error is not None:
                self._end(writer.error)
            for server in self._servers:
                server.client.expire(spec.request_timeout_s)
                last_alive = max(last_alive, server.answered_at, now if server.up else 0.0)
            if now - last_alive > spec.endpoint_timeout_s:
                self._end(unreachable(self._servers, now - last_alive))
            self._look_for_stop(job.done)
            if now - last_report >= self._progress_interval:
                self._report(meter.progress(job.counts, now))
                last_report = now

    def _look_for_stop(self, done: int) -> None:
        if self._error is None and self._should_stop():
            self._end(
                BatchError(
                    f"The batch was stopped after {done} of {self._ready.manifest.rows} rows.",
                    what_to_do="Run it again: it goes on from there.",
                    still_running=f"What was committed is kept in {self._ready.place.parts.uri}.",
                )
            )

    def _report(self, progress: Progress) -> None:
        if self._on_progress is None:
            return
        try:
            self._on_progress(progress)
        except Exception:
            log.exception("Progress could not be reported; the batch goes on")

    def _server_changed(self, server: Server) -> None:
        refusals = [server.refusal for server in self._servers if server.refusal is not None]
        if len(refusals) == len(self._servers):
            self._end(refusals[0])
        if self._queue is None:
            return
        if server.up:
            self._queue.wake(server, server.free_slots)
        else:
            # Rows that were not to go to another one may go there now.
            self._queue.wake_all()

    def _end(self, error: BaseException) -> None:
        """Stop early. Requests end without their answers; what is answered is committed."""
        if self._error is not None:
            return
        self._error = error
        self._ended.set()
        if self._queue is not None:
            self._queue.stop()
        for server in self._servers:
            server.client.drop_connections()
