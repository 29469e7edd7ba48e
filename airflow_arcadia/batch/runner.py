"""Run a batch: keep many rows in flight to every endpoint, commit what comes back, finalise."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

import orjson

from airflow_arcadia.batch.client import AnswerTimeout, ConnectionLost
from airflow_arcadia.batch.door import Finished, Ready, prepare, settle_model
from airflow_arcadia.batch.failures import (
    CONNECTION_LOST,
    Failure,
    backoff,
    connection_lost,
    is_exhausted,
    judge,
    timed_out,
)
from airflow_arcadia.batch.finalise import finalise
from airflow_arcadia.batch.job import Job
from airflow_arcadia.batch.meter import Meter
from airflow_arcadia.batch.records import RowError, answer_line, error_line, parse_row, row_id
from airflow_arcadia.batch.rows import Rows
from airflow_arcadia.batch.servers import Server, choose_model, unreachable
from airflow_arcadia.batch.spec import BatchSpec, BatchSummary, Endpoint, Progress
from airflow_arcadia.batch.storage import is_full
from airflow_arcadia.batch.work import Work, WorkQueue
from airflow_arcadia.batch.writer import SegmentWriter
from airflow_arcadia.exceptions import BatchError, BatchInputError

log = logging.getLogger(__name__)

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
    """Answer every row and return the summary; :func:`run_batch_async` from code without an event loop."""
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
) -> BatchSummary:
    """Answer every row and return the summary.

    A batch that was interrupted goes on after its committed rows; one that is finished returns its summary
    again and sends nothing.

    :param on_progress: called with the progress, at most every ``progress_interval_s`` seconds and once at
        the end. An error it raises is logged, and the batch goes on.
    :param should_stop: asked several times a second; True commits what is answered and ends the batch.

    Raises :class:`BatchInputError` for input, output or parameters that cannot be used, and
    :class:`BatchError` when the batch stopped before its end.
    """
    if not endpoints:
        raise BatchInputError("The batch has no endpoint.", what_to_do="Give it one or more.")
    ready = await asyncio.to_thread(prepare, spec)
    if isinstance(ready, Finished):
        return ready.summary
    run = _Run(
        spec,
        ready,
        endpoints,
        on_progress=on_progress,
        progress_interval_s=progress_interval_s,
        should_stop=should_stop,
    )
    try:
        return await run.run()
    except OSError as error:
        if not is_full(error):
            raise
        raise BatchError(
            f"The storage of {ready.place.uri} is full.",
            what_to_do="Free space there and run the batch again: it goes on from there.",
            still_running=f"{run.committed} rows are committed in {ready.place.parts.uri}.",
        ) from error


class _Run:
    """One attempt. What ends it early goes through :meth:`_end`; the first reason counts."""

    def __init__(
        self,
        spec: BatchSpec,
        ready: Ready,
        endpoints: Sequence[Endpoint],
        *,
        on_progress: Callable[[Progress], None] | None,
        progress_interval_s: float,
        should_stop: Callable[[], bool] | None,
    ) -> None:
        self._spec, self._ready = spec, ready
        self._on_progress, self._progress_interval = on_progress, progress_interval_s
        self._should_stop = should_stop or (lambda: False)
        self._servers = [Server(endpoint, self._server_came_up, self._end) for endpoint in endpoints]
        self._error: BaseException | None = None
        self._queue: WorkQueue | None = None
        self._model = ""
        self._random = random.Random()  # noqa: S311 - spreads repetitions

    @property
    def committed(self) -> int:
        """Rows that a next attempt will find done."""
        manifest_rows = self._ready.manifest.rows
        with contextlib.suppress(OSError, AttributeError):
            job = Job(self._job.folder, self._job.manifest, self._job.attempt)
            return min(job.done, manifest_rows)
        return 0

    async def run(self) -> BatchSummary:
        try:
            await self._reach_servers()
            self._model = choose_model(self._spec.model, self._servers)
            manifest = await asyncio.to_thread(settle_model, self._spec, self._ready, self._model)
            self._job = await asyncio.to_thread(Job.claim, self._ready.place.parts, manifest)
            resumed = self._job.done
            while True:
                await self._answer_pending()
                summary = self._summary(resumed)
                damaged = await asyncio.to_thread(
                    finalise, self._ready.place, self._job, summary, keep_segments=self._spec.keep_segments
                )
                if not damaged:
                    return summary
                for name in damaged:
                    log.warning("Segment %s is damaged: its rows are answered again", name)
                    await asyncio.to_thread(self._job.forget, name)
        finally:
            for server in self._servers:
                await server.close()

    async def _reach_servers(self) -> None:
        began = time.monotonic()
        for server in self._servers:
            server.suspect("it was not reached yet")
        while not any(server.up for server in self._servers):
            self._check_stop(0)
            if time.monotonic() - began > self._spec.endpoint_timeout_s:
                raise unreachable(self._servers, self._spec.endpoint_timeout_s)
            await asyncio.sleep(_TICK / 10)
            if self._error is not None:
                raise self._error

    async def _answer_pending(self) -> None:
        """Until no row is to do any more. Raises what ended it early, after committing what is answered."""
        spec, job = self._spec, self._job
        self._writer = SegmentWriter(job, spec.segment_rows, spec.segment_seconds)
        self._meter = Meter(job.manifest.rows, job.counts, time.monotonic())
        self._rows = Rows(self._ready.rows, self._ready.index)
        queue = self._queue = WorkQueue(job.pending())
        lanes = [
            asyncio.ensure_future(self._lane(server, queue))
            for server in self._servers
            for _ in range(min(spec.max_in_flight, job.manifest.rows))
        ]
        ticker = asyncio.ensure_future(self._tick())
        try:
            await asyncio.gather(*lanes)
        except BaseException as error:  # noqa: BLE001 - raised again below
            # A lane never fails on a row; what comes here is a fault or a cancellation.
            self._end(error)
        finally:
            ticker.cancel()
            for lane in lanes:
                lane.cancel()
            await asyncio.gather(ticker, *lanes, return_exceptions=True)
            self._queue = None
            self._rows.close()
        try:
            if self._writer.error is None:
                await self._writer.flush()
        except Exception as error:
            if self._error is None:
                raise
            log.warning("The last answers could not be committed: %s", error)
        if self._error is not None:
            raise self._error
        self._report(time.monotonic())

    async def _lane(self, server: Server, queue: WorkQueue) -> None:
        writer = self._writer
        while (work := await queue.take(server)) is not None:
            if not writer.has_room:
                await writer.room()
            await self._answer(work, server, queue)

    async def _answer(self, work: Work, server: Server, queue: WorkQueue) -> None:
        job, spec = self._job, self._spec
        line = self._rows.read(work.row)
        identity = row_id(line, work.row, job.manifest.identity.row_key)
        request = parse_row(line, work.row, self._model, spec.parameters)
        if isinstance(request, RowError):
            self._fail_row(work, identity, request)
            queue.finish()
            # Many such rows in a row must not keep the loop from everything else.
            await asyncio.sleep(0)
            return
        outcome = await self._send(server, request.url, orjson.dumps(request.body))
        if not isinstance(outcome, Failure):
            prompt, completion = _usage(outcome)
            self._writer.add(
                work.row,
                answer_line(identity, request.custom_id, outcome),
                failed=False,
                prompt_tokens=prompt,
                completion_tokens=completion,
            )
            queue.finish()
            return
        if self._error is not None:
            # Cut off by the end of the run: no failure of the row.
            queue.finish()
            return
        if outcome.fatal:
            self._end(_refused(server.url, outcome))
        if outcome.code == CONNECTION_LOST:
            work.losses += 1
        else:
            work.attempts += 1
        if is_exhausted(outcome, work.attempts, work.losses, spec.max_attempts):
            self._fail_row(work, identity, RowError(request.custom_id, outcome.code, outcome.message))
            queue.finish()
        elif outcome.code == CONNECTION_LOST:
            # Its server is being probed already; another may take the row at once.
            queue.again(work, 0.0)
        else:
            pause = backoff(work.attempts, spec.retry_base_s, spec.retry_cap_s, self._random.random())
            queue.again(work, max(pause, outcome.retry_after_s))

    async def _send(self, server: Server, url: str, body: bytes) -> dict[str, Any] | Failure:
        try:
            response = await server.client.post(url, body)
        except ConnectionLost as error:
            server.suspect(str(error))
            return connection_lost(str(error))
        except AnswerTimeout:
            return timed_out(self._spec.request_timeout_s)
        return judge(response.status, response.body, response.retry_after)

    def _fail_row(self, work: Work, identity: str, error: RowError) -> None:
        self._writer.add(work.row, error_line(identity, error), failed=True)
        failed, spec = self._job.counts.failed, self._spec
        budget = spec.max_failed_rows
        if spec.max_failed_fraction is not None:
            share = int(spec.max_failed_fraction * self._job.manifest.rows)
            budget = share if budget is None else min(budget, share)
        if budget is not None and failed > budget:
            self._end(
                BatchError(
                    f"{failed} rows have failed, more than the {budget} allowed; "
                    f"the last, {error.custom_id}: {error.message}",
                    what_to_do="Correct the rows or raise the limit, and run the batch again.",
                    still_running=f"What was committed is kept in {self._ready.place.parts.uri}.",
                )
            )

    async def _tick(self) -> None:
        """What no answer triggers."""
        spec = self._spec
        last_up = last_report = time.monotonic()
        while True:
            await asyncio.sleep(_TICK)
            now = time.monotonic()
            self._writer.tick()
            if self._writer.error is not None:
                self._end(self._writer.error)
            for server in self._servers:
                server.client.expire(spec.request_timeout_s)
            if any(server.up for server in self._servers):
                last_up = now
            elif now - last_up > spec.endpoint_timeout_s:
                self._end(unreachable(self._servers, now - last_up))
            with contextlib.suppress(BatchError):
                self._check_stop(self._job.done)
            if now - last_report >= self._progress_interval:
                self._report(now)
                last_report = now

    def _check_stop(self, done: int) -> None:
        if self._should_stop():
            error = BatchError(
                f"The batch was stopped after {done} of {self._ready.manifest.rows} rows.",
                what_to_do="Run it again: it goes on from there.",
                still_running=f"What was committed is kept in {self._ready.place.parts.uri}.",
            )
            self._end(error)
            raise error

    def _report(self, now: float) -> None:
        progress = self._meter.progress(self._job.counts, now)
        if self._on_progress is None:
            return
        try:
            self._on_progress(progress)
        except Exception:
            log.exception("Progress could not be reported; the batch goes on")

    def _server_came_up(self) -> None:
        if self._queue is None:
            return
        try:
            choose_model(self._model, self._servers)
        except BatchInputError as error:
            self._end(error)
        self._queue.wake_all()

    def _end(self, error: BaseException) -> None:
        """Stop early. Lanes end without their answers; what is answered is committed."""
        if self._error is not None:
            return
        self._error = error
        if self._queue is not None:
            self._queue.stop()
        for server in self._servers:
            server.client.drop_connections()

    def _summary(self, resumed: int) -> BatchSummary:
        counts, place = self._job.counts, self._ready.place
        return BatchSummary(
            rows=self._job.manifest.rows,
            ok=counts.ok,
            failed=counts.failed,
            seconds=round(counts.seconds, 3),
            tokens_per_s=round(counts.completion_tokens / counts.seconds, 1) if counts.seconds else 0.0,
            output=place.uri,
            errors=f"{place.uri}.errors.jsonl" if counts.failed else None,
            prompt_tokens=counts.prompt_tokens,
            completion_tokens=counts.completion_tokens,
            model=self._model,
            attempts=self._job.attempt.token,
            resumed_rows=resumed,
            fingerprint=self._job.manifest.identity.fingerprint,
        )


def _usage(body: dict[str, Any]) -> tuple[int, int]:
    usage = body.get("usage")
    if not isinstance(usage, dict):
        return 0, 0
    prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
    return prompt if isinstance(prompt, int) else 0, completion if isinstance(completion, int) else 0


def _refused(url: str, failure: Failure) -> BatchInputError:
    return BatchInputError(
        f"{url} refuses the rows: {failure.message}",
        what_to_do="Give the endpoint its right key.",
        still_running="What was committed is kept.",
    )
