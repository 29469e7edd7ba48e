"""Which failures are worth another attempt, and when. Pure decisions.

vLLM answers errors as ``{"error": {"message", "type", "code"}}``, FastChat's API server as HTTP 400 with
``{"object": "error", "message", "code"}``; FastChat's codes are those of ``fastchat.constants.ErrorCode``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

CONNECTION_LOST = "connection_lost"
MAX_LOSSES = 20
"""Connections a row may lose before it is suspected of killing the engine. Far above ``max_attempts``: a
lost connection is usually the worker's death, of which the rows in flight are innocent."""

_CONTEXT_WORDS = ("context length", "maximum model length", "max_model_len", "maximum input length")
_FASTCHAT_CONTEXT_OVERFLOW = 40303
_FASTCHAT_TRANSIENT = frozenset({42901, 42903, 50001, 50002, 50005, 50006})
"""Rate limit, engine overloaded, internal, out of memory, no worker, worker timeout."""
_UNFINISHED = frozenset({"abort", "error"})
"""vLLM's finish reasons of an answer it gave up on, sent with HTTP 200 when it shuts down."""


@dataclass(frozen=True)
class Failure:
    """Why a row was not answered this time.

    :param retry: whether sending the same again can help.
    :param fatal: whether no row can be answered (a wrong key): the batch stops.
    :param retry_after_s: seconds the server asked to wait.
    """

    code: str
    message: str
    retry: bool
    fatal: bool = False
    retry_after_s: float = 0.0


def judge(status: int, raw: bytes, retry_after: str | None = None) -> dict[str, Any] | Failure:
    """The answer's body when it is whole, else what to make of it."""
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError:
        body = None
    if status == 200:
        return _judge_answer(body)
    error = body.get("error", body) if isinstance(body, Mapping) else {}
    if not isinstance(error, Mapping):
        error = {"message": error}
    message = str(error.get("message") or error.get("detail") or raw[:500].decode("utf-8", "replace"))
    message = f"HTTP {status}: {message}"
    if status in {401, 403}:
        return Failure("unauthorized", message, retry=False, fatal=True)
    if status == 429:
        return Failure("rate_limited", message, retry=True, retry_after_s=_seconds(retry_after))
    if status in {408, 425} or status >= 500 or error.get("code") in _FASTCHAT_TRANSIENT:
        return Failure("server_error", message, retry=True, retry_after_s=_seconds(retry_after))
    if error.get("code") == _FASTCHAT_CONTEXT_OVERFLOW or any(word in message for word in _CONTEXT_WORDS):
        return Failure("context_length_exceeded", message, retry=False)
    return Failure("model_not_found" if status == 404 else "invalid_request", message, retry=False)


def connection_lost(reason: str) -> Failure:
    """The connection ended before the answer did."""
    return Failure(CONNECTION_LOST, f"The connection was lost: {reason}.", retry=True)


def timed_out(seconds: float) -> Failure:
    """No answer in time."""
    return Failure("timeout", f"No answer within {seconds:g} s.", retry=True)


def is_exhausted(failure: Failure, attempts: int, losses: int, max_attempts: int) -> bool:
    """Whether the row becomes an error row.

    :param attempts: answered or timed out attempts so far, this one included.
    :param losses: lost connections so far, this one included.
    """
    return not failure.retry or attempts >= max_attempts or losses >= MAX_LOSSES


def backoff(attempt: int, base: float, cap: float, jitter: float) -> float:
    """Seconds before the next attempt: exponential, spread over its upper half.

    :param attempt: attempts so far, 1 or more.
    :param jitter: a random number from 0 to 1.
    """
    longest = min(cap, base * 2.0 ** min(attempt - 1, 30))
    return longest * (0.5 + 0.5 * jitter)


def _judge_answer(body: object) -> dict[str, Any] | Failure:
    if not isinstance(body, dict):
        return Failure("server_error", "The answer is no JSON object.", retry=True)
    if body.get("object") == "error":
        # FastChat's worker protocol reports errors with HTTP 200.
        return Failure("server_error", str(body.get("message")), retry=True)
    choices = body.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        if isinstance(choice, dict) and choice.get("finish_reason") in _UNFINISHED:
            return Failure(
                "server_error",
                f"The engine gave up on the row (finish_reason {choice['finish_reason']!r}).",
                retry=True,
            )
    return body


def _seconds(retry_after: str | None) -> float:
    try:
        return max(0.0, min(float(retry_after or 0), 3600.0))
    except ValueError:
        return 0.0
