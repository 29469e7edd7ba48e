"""Tell an engine that hangs from one that is slow, by the tokens it counts.

vLLM's ``/metrics`` counts prompt and generated tokens as it goes. An engine with requests running whose
counts stand still for long generates nothing: its HTTP server lives, its workers do not.
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
class Stall:
    """Since when nothing has moved.

    :param tokens: the engine's count, None where it cannot be read.
    :param answered: whole answers so far.
    :param since: monotonic time in seconds.
    """

    tokens: float | None
    answered: int
    since: float


def look(before: Stall | None, tokens: float | None, answered: int, now: float) -> Stall:
    """The stall as of now; call it while rows are in flight."""
    if before is None or before.tokens != tokens or before.answered != answered:
        return Stall(tokens, answered, now)
    return before


def is_hung(stall: Stall | None, now: float, timeout: float) -> bool:
    """Whether the engine hangs. Without its count this is not known: a row's own timeout rules then."""
    return stall is not None and stall.tokens is not None and now - stall.since >= timeout


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
        if not server.up or not server.in_flight:
            stall = None
            continue
        answered = server.answered
        tokens = await _read_tokens(server, timeout / _LOOKS)
        now = time.monotonic()
        stall = look(stall, tokens, answered, now)
        if is_hung(stall, now, timeout):
            reason = f"it hangs: no token for {timeout:g} s with {server.in_flight} rows in flight"
            log.warning("%s: %s", server.url, reason)
            server.hangs(reason, timeout)
            stall = None


async def _read_tokens(server: Server, timeout: float) -> float | None:
    try:
        response = await asyncio.wait_for(server.client.get("/metrics"), max(timeout, 1.0))
    except (ConnectionLost, AnswerTimeout, BadAnswer, asyncio.TimeoutError):
        return None
    return count_tokens(response.body) if response.status == 200 else None
