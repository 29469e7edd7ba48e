"""The endpoints as a batch sees them: which are up, which models they serve, and whose failures are whose."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import orjson

from airflow_arcadia.batch.openai_format import CHAT, COMPLETIONS, EMBEDDINGS, RERANK, RESPONSES, SCORE
from airflow_arcadia.batch.retry_policy import Failure, Verdict, connection_lost, judge
from airflow_arcadia.batch.spec import Endpoint
from airflow_arcadia.batch.supervision import end_tasks, supervised
from airflow_arcadia.batch.transport.bundles import BundlingClient
from airflow_arcadia.batch.transport.http_client import (
    AnswerTimeout,
    BadAnswer,
    Client,
    ConnectionLost,
    HttpClient,
)
from airflow_arcadia.exceptions import BatchError, BatchInputError

log = logging.getLogger(__name__)

_PROBE_TIMEOUT = 5.0
_PROBE_FIRST, _PROBE_LONGEST = 0.1, 2.0
"""Seconds between two probes of an endpoint that is down: doubling from the first to the longest."""
_SMALLEST: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [{"role": "user", "content": "1"}], "max_tokens": 1},
    EMBEDDINGS: {"input": "1"},
    RESPONSES: {"input": "1", "max_output_tokens": 1, "store": False},
    SCORE: {"queries": "1", "documents": "1"},
    RERANK: {"query": "1", "documents": ["1"]},
}
"""URL → the smallest request there is; a completion for all others."""
_LONGEST_PAUSE = 30.0
"""Most seconds between two tries of an endpoint that limits the rate and does not say when to come back."""


def connect_http(endpoint: Endpoint) -> Client:
    """The client for an endpoint that is another process."""
    return BundlingClient(HttpClient(endpoint.url, endpoint.api_key))


class Server:
    """One endpoint. It is up while it lists the batch's model and, after a failure, answers a probe.

    :param most_in_flight: rows it may have at once.
    :param answer_timeout: seconds that a probe's one token may take.
    :param changed: called when it came up, went down or can take more rows.
    :param failed: called with the exception of a probe that is a fault of the program.
    """

    def __init__(  # noqa: PLR0917
        self,
        endpoint: Endpoint,
        client: Client,
        most_in_flight: int,
        answer_timeout: float,
        changed: Callable[[Server], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        self.url = endpoint.url
        self.client = client
        self.model = ""
        """The batch's, empty while it is not known."""
        self.models: list[str] = []
        self.bases: list[str] = []
        """Those of its models that are not adapters of another one."""
        self.up = False
        self.why_down = "it was not reached yet"
        self.refusal: BatchInputError | None = None
        """Why no row can be answered there, e.g. a wrong key: it lasts until a probe says otherwise."""
        self.taken = 0
        """Rows that were handed out for it and have not come back."""
        self.in_flight = 0
        """Those that are sent and not yet answered."""
        self.answered = 0
        self.answered_at = 0.0
        """Monotonic time of its last answer to a row."""
        self._most_in_flight = self._limit = most_in_flight
        self._answer_timeout = answer_timeout
        self._changed, self._failed = changed, failed
        self._probe: asyncio.Task[None] | None = None
        self._probe_url: str | None = None
        """Where the probe asks for a token; None only lists the models."""
        self._verdict: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        """Whether it was well at the first look after it was suspected."""
        self._failures = 0
        """How often it was suspected since its last answer to a row."""

    @property
    def has_room(self) -> bool:
        """Whether it may be given a row now."""
        return self.free_slots > 0

    @property
    def free_slots(self) -> int:
        """How many rows it may be given now."""
        return self._limit - self.taken if self.up else 0

    def reach(self) -> None:
        """Wait for it in the background."""
        self._suspend(self.why_down, 0.0)

    def expect(self, model: str) -> None:
        """Take it for up only while it lists this model."""
        self.model = model
        if self.up and model not in self.models:
            self._suspend(self.why_down, 0.0)

    def suspect(self, reason: str, url: str | None = COMPLETIONS) -> None:
        """Send it nothing until it lists its models and generates a token at this URL, if one is given."""
        self._probe_url = url or self._probe_url
        self._suspend(reason, 0.0)

    def limit_rate(self, failure: Failure) -> None:
        """It wants less: send it nothing for as long as it says, then fewer rows at a time."""
        if self.up:
            self._limit = max(1, self._limit // 2)
        self._suspend(failure.message, failure.retry_after_s, _LONGEST_PAUSE)

    async def is_well(self, failure: Failure, url: str) -> bool:
        """Whether it answers a probe after this failure, so that the failure may be the row's own."""
        self._probe_url = url
        self._suspend(failure.message, failure.retry_after_s)
        return await asyncio.shield(self._verdict)

    def hangs(self, reason: str) -> None:
        """Take its rows away, and send it nothing until it generates a token.

        That its HTTP server answers proves nothing: the engine behind it is what hangs.
        """
        self.suspect(reason)
        self.client.drop_connections()

    def note_answer(self) -> None:
        """It answered a row."""
        self.answered += 1
        self.answered_at = time.monotonic()
        self._failures = 0
        if self._limit < self._most_in_flight:
            self._limit += 1
            self._changed(self)

    async def close(self) -> None:
        """End its connections."""
        if self._probe is not None:
            await end_tasks([self._probe])
        self._tell(well=False)
        await self.client.close()

    def _suspend(self, reason: str, wait: float, longest_pause: float = _PROBE_LONGEST) -> None:
        if self._probe is not None and not self._probe.done():
            return
        self.up = False
        self.why_down = reason
        self._failures += 1
        if self._failures > 1:
            # It answers probes and fails rows: not again and again without a pause.
            wait = max(wait, min(_PROBE_FIRST * 2.0 ** min(self._failures - 2, 30), longest_pause))
        self._verdict = asyncio.get_running_loop().create_future()
        self._probe = supervised(self._probe_until_up(wait), self._failed)
        self._changed(self)

    async def _probe_until_up(self, wait: float) -> None:
        pause = _PROBE_FIRST
        began = time.monotonic()
        await asyncio.sleep(wait)
        while (asked := await self._look()) is not None:
            self._tell(well=False)
            await asyncio.sleep(max(pause, asked))
            pause = min(2 * pause, _PROBE_LONGEST)
        self.up = True
        self._probe_url = None
        self._tell(well=True)
        if time.monotonic() - began > _PROBE_LONGEST:
            log.info("%s answers again after %.0f s", self.url, time.monotonic() - began)
        # Not while this task counts as a probe: whoever is told may suspect the endpoint again.
        asyncio.get_running_loop().call_soon(self._changed, self)

    def _tell(self, *, well: bool) -> None:
        if not self._verdict.done():
            self._verdict.set_result(well)

    async def _look(self) -> float | None:
        """None when it is well, else the seconds for which it asks to be left alone."""
        try:
            failure = await self._list_models() or await self._generate()
        except (ConnectionLost, AnswerTimeout, BadAnswer) as error:
            failure = connection_lost(str(error))
        if failure is None:
            self.refusal = None
            return None
        self.why_down = failure.message
        refusal, self.refusal = self.refusal, None
        if failure.verdict is Verdict.JOB:
            self.refusal = refused(self.url, failure.message)
            if refusal is None:
                log.warning("%s gets no rows: %s", self.url, failure.message)
                self._changed(self)
        return failure.retry_after_s

    async def _list_models(self) -> Failure | None:
        """What keeps the endpoint from serving the batch's model."""
        try:
            response = await asyncio.wait_for(self.client.get("/v1/models"), _PROBE_TIMEOUT)
        except asyncio.TimeoutError:
            message = f"it did not list its models within {_PROBE_TIMEOUT:g} s"
            return Failure(Verdict.ENDPOINT, "timeout", message)
        if response.status in {401, 403}:
            message = f"it refuses the API key (HTTP {response.status})"
            return Failure(Verdict.JOB, "unauthorized", message)
        try:
            listed = orjson.loads(response.body)["data"]
            self.models = [str(model["id"]) for model in listed]
            self.bases = [str(model["id"]) for model in listed if not model.get("parent")]
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
            message = f"it answered HTTP {response.status} instead of its models"
            return Failure(Verdict.ENDPOINT, "server_error", message)
        if self.model and self.model not in self.models:
            message = f"it does not serve {self.model!r} but {', '.join(self.models) or 'no model'}"
            return Failure(Verdict.JOB, "model_not_found", message)
        return None

    async def _generate(self) -> Failure | None:
        """What is wrong with the endpoint, told by a request for one token."""
        if self._probe_url is None:
            return None
        url, body = self._probe_url, orjson.dumps(_one_token(self._probe_url, self.model))
        try:
            response = await asyncio.wait_for(self.client.post(url, body), self._answer_timeout)
        except asyncio.TimeoutError:
            return Failure(
                Verdict.ENDPOINT, "timeout", f"{self.why_down}; no token within {self._answer_timeout:g} s"
            )
        found = judge(response.status, response.body, response.retry_after, now=time.time())
        if not isinstance(found, Failure) or (found.verdict is Verdict.ROW and not found.unsure):
            # That it does not like the probe is an answer, too.
            return None
        return found


def the_only_model(server: Server) -> str:
    """The model for a batch that names none. Raises :class:`BatchInputError` unless it serves just one."""
    if len(server.bases) != 1:
        raise BatchInputError(
            f"{server.url} serves {', '.join(server.models) or 'no model'}, and the batch names none.",
            what_to_do="Set model to one of them.",
            still_running="No row was sent.",
        )
    return server.bases[0]


def refused(url: str, reason: str) -> BatchInputError:
    """The error for an endpoint that can answer no row of the batch."""
    return BatchInputError(
        f"{url} can answer no row: {reason}.",
        what_to_do="Give the endpoint its key and the batch the model it serves, or use another endpoint.",
        still_running="What was committed is kept.",
    )


def unreachable(servers: Sequence[Server], seconds: float) -> BatchError:
    """The error for a batch none of whose endpoints answers."""
    reasons = "; ".join(f"{server.url}: {server.why_down}" for server in servers)
    return BatchError(
        f"No endpoint answered for {seconds:.0f} s ({reasons}).",
        what_to_do="See why the worker ended; run the batch again and it goes on from there.",
        still_running="What was committed is kept.",
    )


def _one_token(url: str, model: str) -> dict[str, Any]:
    """The smallest request there is."""
    return {"model": model, **_SMALLEST.get(url, {"prompt": "1", "max_tokens": 1})}
