"""The endpoints as a batch sees them: which answer, which models they serve, and when one is back."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence

import orjson

from airflow_arcadia.batch.spec import Endpoint
from airflow_arcadia.batch.transport.bundles import BundlingClient
from airflow_arcadia.batch.transport.http_client import (
    AnswerTimeout,
    BadAnswer,
    Client,
    ConnectionLost,
    HttpClient,
)
from airflow_arcadia.exceptions import ArcadiaError, BatchError, BatchInputError

log = logging.getLogger(__name__)

_PROBE_TIMEOUT = 5.0
_PROBE_FIRST, _PROBE_LONGEST = 0.1, 2.0
"""Seconds between two probes of an endpoint that is down: doubling from the first to the longest."""


def connect_http(endpoint: Endpoint) -> Client:
    """The way to an endpoint that is another process."""
    return BundlingClient(HttpClient(endpoint.url, endpoint.api_key))


class Server:
    """One endpoint. It counts as down until it has listed its models.

    :param client: the way to it.
    :param most_in_flight: rows it may have at once.
    :param changed: called when it came up.
    :param failed: called with an error that no waiting mends.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        client: Client,
        most_in_flight: int,
        changed: Callable[[], None],
        failed: Callable[[ArcadiaError], None],
    ) -> None:
        self.url = endpoint.url
        self.client = client
        self.models: list[str] = []
        self.up = False
        self.why_down = "it was not reached yet"
        self.in_flight = 0
        """Rows sent and not yet answered."""
        self._most_in_flight = most_in_flight
        self.answered = 0
        self.last_sent: tuple[str, bytes] | None = None
        """Path and body of a row it was given."""
        self._canary_seconds: float | None = None
        self._changed, self._failed = changed, failed
        self._probe: asyncio.Task[None] | None = None

    @property
    def room(self) -> int:
        """How many more rows it may be given now."""
        return self._most_in_flight - self.in_flight if self.up else 0

    def suspect(self, reason: str) -> None:
        """Send it nothing until it lists its models again."""
        if self._probe is None or self._probe.done():
            self.up = False
            self.why_down = reason
            self._probe = asyncio.get_running_loop().create_task(self._probe_until_up())

    def hangs(self, reason: str, seconds: float) -> None:
        """Take its rows away, and send it nothing until it answers one of them within so many seconds.

        That its HTTP server answers proves nothing: the engine behind it is what hangs.
        """
        self._canary_seconds = seconds
        self.suspect(reason)
        self.client.drop_connections()

    async def close(self) -> None:
        """End its connections."""
        if self._probe is not None:
            await end_tasks([self._probe])
        await self.client.close()

    async def _probe_until_up(self) -> None:
        pause = _PROBE_FIRST
        began = time.monotonic()
        while not (await self._is_up() and await self._generates()):
            await asyncio.sleep(pause)
            pause = min(2 * pause, _PROBE_LONGEST)
        self.up = True
        if time.monotonic() - began > _PROBE_LONGEST:
            log.info("%s answers again after %.0f s", self.url, time.monotonic() - began)
        self._changed()

    async def _generates(self) -> bool:
        if self._canary_seconds is None or self.last_sent is None:
            return True
        try:
            await asyncio.wait_for(self.client.post(*self.last_sent), self._canary_seconds)
        except (ConnectionLost, AnswerTimeout, BadAnswer, asyncio.TimeoutError):
            return False
        self._canary_seconds = None
        return True

    async def _is_up(self) -> bool:
        try:
            response = await asyncio.wait_for(self.client.get("/v1/models"), _PROBE_TIMEOUT)
        except (ConnectionLost, AnswerTimeout, BadAnswer) as error:
            self.why_down = str(error)
            return False
        except asyncio.TimeoutError:
            self.why_down = f"it did not list its models within {_PROBE_TIMEOUT:g} s"
            return False
        if response.status in {401, 403}:
            self._failed(
                BatchInputError(
                    f"{self.url} refuses the API key (HTTP {response.status}).",
                    what_to_do="Give the endpoint its right key.",
                    still_running="What was committed is kept.",
                )
            )
            return False
        try:
            self.models = [str(model["id"]) for model in orjson.loads(response.body)["data"]]
        except (orjson.JSONDecodeError, KeyError, TypeError):
            self.why_down = f"it answered HTTP {response.status} instead of its models"
            return False
        return True


async def end_tasks(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancel tasks and wait for their end. Errors of theirs are dropped.

    Asked again until they are done: before Python 3.12 ``asyncio.wait_for`` loses a cancellation that comes
    in the moment its own task is done.
    """
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        done, pending = await asyncio.wait(pending, timeout=1.0)
        for task in done:
            if not task.cancelled():
                task.exception()


def choose_model(wanted: str, servers: Sequence[Server]) -> str:
    """The model to answer with. Raises :class:`BatchInputError` when an endpoint that is up has it not."""
    up = [server for server in servers if server.up]
    if not wanted:
        served = up[0].models
        if len(served) != 1:
            raise BatchInputError(
                f"{up[0].url} serves {', '.join(served) or 'no model'}, and the batch names none.",
                what_to_do="Set model to one of them.",
            )
        wanted = served[0]
    for server in up:
        if wanted not in server.models:
            raise BatchInputError(
                f"{server.url} does not serve {wanted!r} but {', '.join(server.models) or 'no model'}.",
                what_to_do="Set model to one of these, or use another endpoint.",
                still_running="No row was sent to it.",
            )
    return wanted


def unreachable(servers: Sequence[Server], seconds: float) -> BatchError:
    """The error for a batch none of whose endpoints answers."""
    reasons = "; ".join(f"{server.url}: {server.why_down}" for server in servers)
    return BatchError(
        f"No endpoint answered for {seconds:.0f} s ({reasons}).",
        what_to_do="See why the worker ended; run the batch again and it goes on from there.",
        still_running="What was committed is kept.",
    )
