"""Lanes: each takes a row, sends it, and writes down what became of it, over and over."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson

from airflow_arcadia.batch.input.row_index import Rows
from airflow_arcadia.batch.input.row_parser import Shape
from airflow_arcadia.batch.openai_format import Request, RowError, answer_line, error_line, row_id
from airflow_arcadia.batch.output.job import Job
from airflow_arcadia.batch.output.writer import SegmentWriter
from airflow_arcadia.batch.retry_policy import (
    CONNECTION_LOST,
    Failure,
    backoff,
    connection_lost,
    is_exhausted,
    judge,
    timed_out,
)
from airflow_arcadia.batch.row_queue import Work, WorkQueue
from airflow_arcadia.batch.spec import BatchSpec
from airflow_arcadia.batch.transport.http_client import AnswerTimeout, BadAnswer, ConnectionLost
from airflow_arcadia.batch.transport.server import Server, end_tasks
from airflow_arcadia.exceptions import BatchError, BatchInputError


class _Asked(NamedTuple):
    """A row on its way, as it is sent."""

    work: Work
    identity: str
    request: Request


@dataclass(frozen=True)
class Lanes:
    """What all lanes of a run share.

    :param end: called with the reason when no further row is to be sent.
    :param ended: whether it was called.
    """

    spec: BatchSpec
    job: Job
    shape: Shape
    rows: Rows
    queue: WorkQueue
    writer: SegmentWriter
    end: Callable[[BaseException], None]
    ended: Callable[[], bool]

    async def run(self, server: Server) -> None:
        """As many lanes to the server as rows may be in flight to it, until no row is left."""
        loop = asyncio.get_running_loop()
        lanes = []
        try:
            for _ in range(min(self.spec.max_in_flight, self.job.manifest.rows)):
                lanes.append(loop.create_task(self._run_lane(server)))
                # One in each turn of the event loop: the first rows are on their way, and the engine at work,
                # while the last ones are still read.
                await asyncio.sleep(0)
            await asyncio.gather(*lanes)
        finally:
            await end_tasks(lanes)

    async def _run_lane(self, server: Server) -> None:
        writer = self.writer
        while (work := await self.queue.take(server)) is not None:
            if not writer.has_room:
                await writer.room()
            asked = self._read(work)
            if asked is None:
                # Many such rows one after the other must not keep the loop from everything else.
                await asyncio.sleep(0)
            else:
                await self._answer(asked, server)

    def _read(self, work: Work) -> _Asked | None:
        """The row's request; None when it cannot be sent, which is then written down."""
        line = self.rows.read(work.row)
        identity = row_id(line, work.row, self.job.row_key)
        request = self.shape.parse(line, work.row)
        if isinstance(request, RowError):
            self._fail(work, identity, request)
            return None
        return _Asked(work, identity, request)

    async def _answer(self, asked: _Asked, server: Server) -> None:
        outcome = await self._send(server, asked.request.url, orjson.dumps(asked.request.body))
        if isinstance(outcome, Failure):
            self._take_failure(asked, outcome, server)
        else:
            self._take_answer(asked, outcome)

    def _take_answer(self, asked: _Asked, body: dict[str, Any]) -> None:
        prompt_tokens, completion_tokens = _usage(body)
        self.writer.add(
            asked.work.row,
            answer_line(asked.identity, asked.request.custom_id, body),
            failed=False,
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
        )
        self.queue.finish()

    async def _send(self, server: Server, url: str, body: bytes) -> dict[str, Any] | Failure:
        server.in_flight += 1
        server.last_sent = (url, body)
        try:
            response = await server.client.post(url, body)
        except ConnectionLost as error:
            server.suspect(str(error))
            return connection_lost(str(error))
        except AnswerTimeout:
            return timed_out(self.spec.request_timeout_s)
        except BadAnswer as error:
            return Failure("server_error", str(error), retry=True)
        finally:
            server.in_flight -= 1
        server.answered += 1
        return judge(response.status, response.body, response.retry_after)

    def _take_failure(self, asked: _Asked, failure: Failure, server: Server) -> None:
        spec, work = self.spec, asked.work
        if self.ended():
            # Cut off by the end of the run: no failure of the row.
            self.queue.finish()
            return
        if failure.fatal:
            self.end(_refused(server.url, failure))
            self.queue.finish()
            return
        lost = failure.code == CONNECTION_LOST
        work.losses += lost
        work.attempts += not lost
        if is_exhausted(failure, work.attempts, work.losses, spec.max_attempts):
            error = RowError(asked.request.custom_id, failure.code, failure.message)
            self._fail(work, asked.identity, error)
        elif lost:
            # Its server is being probed already; another may take the row at once.
            self.queue.again(work, 0.0)
        else:
            # Jitter: rows that failed together are not to come back together.
            jitter = random.random()  # noqa: S311
            pause = backoff(work.attempts, spec.retry_base_s, spec.retry_cap_s, jitter)
            self.queue.again(work, max(pause, failure.retry_after_s))

    def _fail(self, work: Work, identity: str, error: RowError) -> None:
        self.writer.add(work.row, error_line(identity, error), failed=True)
        self.queue.finish()
        failed, budget = self.job.counts.failed, self.spec.failed_rows_allowed(self.job.manifest.rows)
        if budget is not None and failed > budget:
            self.end(
                BatchError(
                    f"{failed} rows have failed, more than the {budget} allowed; "
                    f"the last, {error.custom_id}: {error.message}",
                    what_to_do="Correct the rows or raise the limit; retry_failed_only tries them again.",
                    still_running=f"What was committed is kept in {self.job.folder.uri}.",
                )
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
