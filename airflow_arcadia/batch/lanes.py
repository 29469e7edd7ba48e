"""Lanes: each takes a row, sends it, and writes down what became of it, over and over."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson

from airflow_arcadia.batch.client import AnswerTimeout, ConnectionLost
from airflow_arcadia.batch.failures import (
    CONNECTION_LOST,
    Failure,
    backoff,
    connection_lost,
    is_exhausted,
    judge,
    timed_out,
)
from airflow_arcadia.batch.job import Job
from airflow_arcadia.batch.records import Request, RowError, answer_line, error_line, row_id
from airflow_arcadia.batch.rows import Rows
from airflow_arcadia.batch.servers import Server
from airflow_arcadia.batch.shape import Shape
from airflow_arcadia.batch.spec import BatchSpec
from airflow_arcadia.batch.work import Work, WorkQueue
from airflow_arcadia.batch.writer import SegmentWriter
from airflow_arcadia.exceptions import BatchError, BatchInputError


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

    def start(self, server: Server) -> list[asyncio.Task[None]]:
        """As many lanes to the server as rows may be in flight to it."""
        loop = asyncio.get_running_loop()
        count = min(self.spec.max_in_flight, self.job.manifest.rows)
        return [loop.create_task(self._run(server)) for _ in range(count)]

    async def _run(self, server: Server) -> None:
        writer = self.writer
        while (work := await self.queue.take(server)) is not None:
            if not writer.has_room:
                await writer.room()
            await self._answer(work, server)

    async def _answer(self, work: Work, server: Server) -> None:
        line = self.rows.read(work.row)
        identity = row_id(line, work.row, self.job.row_key)
        request = self.shape.parse(line, work.row)
        if isinstance(request, RowError):
            self._fail(work, identity, request)
            # Many such rows one after the other must not keep the loop from everything else.
            await asyncio.sleep(0)
            return
        outcome = await self._send(server, request.url, orjson.dumps(request.body))
        if isinstance(outcome, Failure):
            self._take_failure(work, identity, request, outcome, server)
            return
        prompt_tokens, completion_tokens = _usage(outcome)
        self.writer.add(
            work.row,
            answer_line(identity, request.custom_id, outcome),
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
        finally:
            server.in_flight -= 1
        server.answered += 1
        return judge(response.status, response.body, response.retry_after)

    def _take_failure(
        self, work: Work, identity: str, request: Request, failure: Failure, server: Server
    ) -> None:
        spec = self.spec
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
            self._fail(work, identity, RowError(request.custom_id, failure.code, failure.message))
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
