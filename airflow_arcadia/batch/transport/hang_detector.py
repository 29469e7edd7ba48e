"""Tell an engine that hangs from one that is slow, by the tokens it counts.

vLLM's ``/metrics`` counts prompt and generated tokens as it goes. An engine with requests running whose
counts stand still for long generates nothing: its HTTP server lives, its workers do not. A server that does
not answer ``/metrics`` at all, whatever it would say there, is frozen.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from dataclasses import dataclass

from airflow_arcadia.batch.transport.http_client import AnswerTimeout, BadAnswer, ConnectionLost
from airflow_arcadia.batch.transport.server import Server

log = logging.getLogger(__name__)

_TOKENS = re.compile(rb"^vllm:(?:prompt|generation)_tokens_total(?:\{[^}]*\})? (\S+)", re.MULTILINE)
_LOOKS = 10
"""Looks per timeout."""


@dataclass(frozen=True)
class Reading:
    """What one look at a server found.

    :param responds: whether it answered ``/metrics`` at all.
    :param tokens: the engine's count, None where it cannot be read.
    :param answered: whole answers so far.
    """

    responds: bool
    tokens: float | None
    answered: int


@dataclass(frozen=True)
class Stall:
    """Since when nothing has moved.

    :param known: whether something would be seen to move: a count, or any answer at all.
    :param since: monotonic time in seconds.
    """

    tokens: float | None
    answered: int
    known: bool
    since: float


def look(before: Stall | None, reading: Reading, now: float) -> Stall:
    """The stall as of now; call it while rows are in flight."""
    known = reading.tokens is not None or not reading.responds
    tokens = reading.tokens
    if before is not None:
        if tokens is None:
            # A count that was read once is still the last one known.
            tokens = before.tokens
        if before.tokens in {None, tokens} and before.answered == reading.answered:
            return Stall(tokens, reading.answered, known, before.since)
    return Stall(tokens, reading.answered, known, now)


def is_hung(stall: Stall | None, now: float, timeout: float) -> bool:
    """Whether the engine hangs. Of a server that answers and counts nothing this is not known."""
    return stall is not None and stall.known and now - stall.since >= timeout


def count_tokens(metrics: bytes) -> float | None:
    """The sum of all token counts of the engine; None when there is none."""
    try:
        counts = [float(text) for text in _TOKENS.findall(metrics)]
    except ValueError:
        return None
    return sum(counts) if counts else None


async def watch(server: Server, timeout: float) -> None:
    """Look at the server until cancelled; when it hangs, take its rows away until it generates again."""
    stall: Stall | None = None
    while True:
        await asyncio.sleep(timeout / _LOOKS)
        if not server.in_flight:
            stall = None
            continue
        answered = server.answered
        responds, tokens = await _read_metrics(server, timeout / _LOOKS)
        now = time.monotonic()
        stall = look(stall, Reading(responds, tokens, answered), now)
        if is_hung(stall, now, timeout):
            what = f"no token for {timeout:g} s" if responds else f"no sign of life for {timeout:g} s"
            reason = f"it hangs: {what} with {server.in_flight} rows in flight"
            log.warning("%s: %s", server.url, reason)
            server.hangs(reason)
            stall = None


async def _read_metrics(server: Server, timeout: float) -> tuple[bool, float | None]:
    try:
        response = await asyncio.wait_for(server.client.get("/metrics"), max(timeout, 1.0))
    except (ConnectionLost, AnswerTimeout, asyncio.TimeoutError):
        return False, None
    except BadAnswer:
        return True, None
    return True, count_tokens(response.body) if response.status == 200 else None
