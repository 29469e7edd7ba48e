"""Sends rows, and decides what becomes of each: answered, sent again, or an error row."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from airflow_arcadia.batch.failure_budget import exceeded, too_many_failed
from airflow_arcadia.batch.input.row_index import Rows
from airflow_arcadia.batch.input.row_parser import Shape
from airflow_arcadia.batch.memory_budget import ByteBudget
from airflow_arcadia.batch.openai_format import (
    Request,
    RowError,
    answer_line,
    body_bytes,
    error_line,
    invalid_line,
    row_id,
)
from airflow_arcadia.batch.output.job import Job
from airflow_arcadia.batch.output.writer import SegmentWriter
from airflow_arcadia.batch.response_schema import problem_of
from airflow_arcadia.batch.retry_policy import (
    CONNECTION_LOST,
    ENGINE_DIED,
    NOT_CONNECTED,
    Action,
    Failure,
    Verdict,
    backoff,
    bad_answer,
    connection_lost,
    decide,
    judge,
    not_connected,
    timed_out,
)
from airflow_arcadia.batch.row_queue import MAX_RETURNS, RowQueue
from airflow_arcadia.batch.spec import BatchSpec
from airflow_arcadia.batch.supervision import end_tasks
from airflow_arcadia.batch.suspects import MAX_DEATHS_ALONE, PendingRow
from airflow_arcadia.batch.transport.http_client import AnswerTimeout, BadAnswer, ConnectionLost, NotConnected
from airflow_arcadia.batch.transport.server import Server

log = logging.getLogger(__name__)

_GATHER_LOSSES_S = 0.1
"""How long the losses of one death are collected: its connections do not end in the same moment."""


class Sent(NamedTuple):
    """A row as it is sent."""

    pending: PendingRow
    identity: str
    request: Request


class RowFailed(NamedTuple):
    """A row that becomes an error row."""

    pending: PendingRow
    identity: str
    error: RowError


@dataclass(frozen=True)
class Sender:
    """What all requests of a run share.

    :param end: called with the reason when no further row is to be sent.
    :param ended: whether it was called.
    :param remember: called when the suspects changed, to write them down.
    """

    spec: BatchSpec
    job: Job
    shape: Shape
    rows: Rows
    queue: RowQueue
    writer: SegmentWriter
    memory: ByteBudget
    end: Callable[[BaseException], None]
    ended: Callable[[], bool]
    remember: Callable[[], None]
    losses: dict[Server, list[tuple[Sent, Failure]]] = field(default_factory=dict)
    """Rows that an endpoint lost, until it is decided who is to blame."""

    async def run(self, server: Server) -> None:
        """Keep as many rows in flight to the endpoint as may be, until no row is left."""
        loop = asyncio.get_running_loop()
        slots = []
        try:
            for _ in range(min(self.spec.max_in_flight, self.job.manifest.rows)):
                slots.append(loop.create_task(self._fill_slot(server)))
                # One in each turn of the event loop: the first rows are on their way, and the engine at work,
                # while the last ones are still read.
                await asyncio.sleep(0)
            await asyncio.gather(*slots)
        finally:
            await end_tasks(slots)

    async def _fill_slot(self, server: Server) -> None:
        while (pending := await self.queue.take(server)) is not None:
            size = self.rows.size(pending.row)
            await self.memory.acquire(size)
            try:
                if not self.writer.has_room:
                    await self.writer.wait_for_space()
                await self._send_row(pending, server)
            finally:
                self.memory.release(size)

    async def _send_row(self, pending: PendingRow, server: Server) -> None:
        if self.ended() or not server.up:
            # That came about while the row waited for memory.
            self.queue.leave(pending, server)
            self.queue.give_back(pending, 0)
            return
        read = await self._read(pending)
        if isinstance(read, RowFailed):
            self.queue.leave(pending, server)
            self._fail(read)
            # Many such rows one after the other must not keep the loop from everything else.
            await asyncio.sleep(0)
            return
        sent, body = read
        outcome = await self._exchange(sent, body, server)
        if isinstance(outcome, Failure):
            await self._take_failure(sent, outcome, server)
        else:
            server.note_answer()
            self.queue.leave(pending, server)
            self._take_answer(sent, outcome)

    async def _read(self, pending: PendingRow) -> tuple[Sent, bytes] | RowFailed:
        """The row's request and its bytes, or why it cannot be sent."""
        line = self.rows.read(pending.row)
        identity = row_id(line, pending.row, self.job.row_key)
        request = await self.shape.parse_async(line, pending.row)
        if not isinstance(request, RowError):
            try:
                return Sent(pending, identity, request), body_bytes(request.body)
            except TypeError as error:
                # Deeper nesting can be read than written.
                request = RowError(request.custom_id, "invalid_row", f"It cannot be sent: {error}.")
        return RowFailed(pending, identity, request)

    async def _exchange(self, sent: Sent, body: bytes, server: Server) -> dict[str, Any] | Failure:
        """Send the row once."""
        server.in_flight += 1
        try:
            response = await server.client.post(sent.request.url, body)
        except NotConnected as error:
            return not_connected(str(error))
        except ConnectionLost as error:
            return connection_lost(str(error))
        except AnswerTimeout:
            return timed_out(self.spec.request_timeout_s)
        except BadAnswer as error:
            return bad_answer(str(error))
        finally:
            server.in_flight -= 1
        return judge(
            response.status,
            response.body,
            response.retry_after,
            now=time.time(),
            model_is_listed=sent.request.body.get("model") in server.models,
        )

    def _take_answer(self, sent: Sent, body: dict[str, Any]) -> None:
        custom_id = sent.request.custom_id
        try:
            problem = problem_of(sent.request, body) if self.spec.response_schema is not None else None
            if problem is None:
                line = answer_line(sent.identity, custom_id, body)
            else:
                line = invalid_line(sent.identity, custom_id, problem, body)
        except (TypeError, ValueError, AttributeError, RecursionError) as error:
            # An answer can be odd in more ways than can be listed: it is this row's alone.
            self._fail(_failed(sent, "invalid_answer", f"The answer cannot be written down: {error}."))
            return
        prompt_tokens, completion_tokens = _usage(body)
        self.writer.add(
            sent.pending.row,
            line,
            failed=problem is not None,
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
        )
        self.queue.finish(sent.pending)
        if problem is not None:
            self._end_if_too_many_failed(f"{custom_id}: {problem}")

    async def _take_failure(self, sent: Sent, failure: Failure, server: Server) -> None:
        well = await self._tell_server(sent, failure, server)
        pending = sent.pending
        self.queue.leave(pending, server)
        if self.ended():
            # Cut off by the end of the run: not a failure of the row.
            self.queue.finish(pending)
            return
        action = decide(failure, well=well, alone=pending.alone)
        if action is Action.FAIL:
            self._fail(_failed(sent, failure.code, failure.message, failure))
        elif action is Action.RETRY:
            self._retry(sent, failure, server)
        elif action is Action.BLAME:
            self._lose(sent, failure, server)
        elif pending.alone and failure.limits_rate and pending.returns + 1 >= MAX_RETURNS:
            # Alone, after every pause that was asked for: it is more than is ever allowed.
            self._fail(_failed(sent, failure.code, failure.message, failure))
        else:
            self.queue.give_back(pending, _weight(failure, well=well))

    async def _tell_server(self, sent: Sent, failure: Failure, server: Server) -> bool:
        """Let the endpoint know of the failure; whether it is well all the same."""
        url = sent.request.url
        if self.ended():
            return False
        if failure.verdict is Verdict.ROW and not failure.unsure:
            server.note_answer()
            return True
        if failure.code in {CONNECTION_LOST, NOT_CONNECTED}:
            server.suspect(failure.message, None if failure.code == NOT_CONNECTED else url)
        elif failure.limits_rate:
            server.limit_rate(failure)
        else:
            return await server.is_well(failure, url)
        return False

    def _retry(self, sent: Sent, failure: Failure, server: Server) -> None:
        """Send the row again, elsewhere if it can be, unless it has failed too often."""
        spec, pending = self.spec, sent.pending
        pending.attempts += 1
        pending.failed_at |= {server}
        if pending.attempts >= spec.max_attempts:
            self._fail(_failed(sent, failure.code, failure.message, failure))
            return
        # Jitter: rows that failed together are not to come back together.
        jitter = random.random()  # noqa: S311
        self.queue.again(pending, backoff(pending.attempts, spec.retry_base_s, spec.retry_cap_s, jitter))

    def _lose(self, sent: Sent, failure: Failure, server: Server) -> None:
        """Note a row that was in flight when its engine died, or that was refused alone."""
        sent.pending.killed |= failure.code == CONNECTION_LOST or failure.unsure
        losses = self.losses.setdefault(server, [])
        if not losses:
            asyncio.get_running_loop().call_later(_GATHER_LOSSES_S, self._settle, server)
        losses.append((sent, failure))

    def settle_all(self) -> None:
        """Decide who is to blame for what was lost until now."""
        for server in list(self.losses):
            self._settle(server)

    def _settle(self, server: Server) -> None:
        """Decide who is to blame for a death."""
        try:
            losses = {sent.pending: (sent, failure) for sent, failure in self.losses.pop(server, ())}
            if not losses:
                return
            log.warning("%s was lost with %d rows in flight: they are sent again", server.url, len(losses))
            for pending in self.queue.blame(list(losses)):
                self._fail(_convicted(*losses[pending]))
            self.remember()
        except Exception as error:  # noqa: BLE001 - ends the batch: nobody else would hear of it
            self.end(error)

    def _fail(self, failed: RowFailed) -> None:
        """Make the row an error row."""
        self.writer.add(failed.pending.row, error_line(failed.identity, failed.error), failed=True)
        self.queue.finish(failed.pending)
        self._end_if_too_many_failed(f"{failed.error.custom_id}: {failed.error.message}")

    def _end_if_too_many_failed(self, last: str) -> None:
        job = self.job
        if (what := exceeded(self.spec, job.counts, job.manifest.rows)) is not None:
            self.end(too_many_failed(what, last, job.folder.uri))


def _weight(failure: Failure, *, well: bool) -> int:
    """How much a return says about the row: little where its endpoint fails everything."""
    if failure.code == NOT_CONNECTED:
        return 0
    return 5 if well else 1


def _failed(sent: Sent, code: str, message: str, failure: Failure | None = None) -> RowFailed:
    """The row as an error row; with the failure that a server's answer was, in that server's words."""
    status, given = (failure.status, failure.error) if failure is not None else (None, None)
    error = RowError(sent.request.custom_id, code, message, status, given)
    return RowFailed(sent.pending, sent.identity, error)


def _convicted(sent: Sent, failure: Failure) -> RowFailed:
    if sent.pending.killed:
        times = f"{MAX_DEATHS_ALONE} times"
        message = f"The engine died {times} while it answered this row alone: {failure.message}"
        return _failed(sent, ENGINE_DIED, message)
    message = f"{failure.message} (sent alone {MAX_DEATHS_ALONE} times)"
    return _failed(sent, failure.code, message, failure)


def _usage(body: dict[str, Any]) -> tuple[int, int]:
    usage = body.get("usage")
    if not isinstance(usage, dict):
        return 0, 0
    prompt = usage.get("prompt_tokens", usage.get("input_tokens"))
    completion = usage.get("completion_tokens", usage.get("output_tokens"))
    return prompt if isinstance(prompt, int) else 0, completion if isinstance(completion, int) else 0
