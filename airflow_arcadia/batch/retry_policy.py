"""What an answer means: a row is answered, or whose failure it is and what to do about it. Pure decisions.

A failure is the row's (it becomes an error row), the endpoint's (the row goes elsewhere, the endpoint is
probed) or the job's (what the batch was given, e.g. its key, is refused). HTTP does not always tell: a 500
may come from a row that the engine cannot compute, or from an engine that computes nothing. Such a failure
is *unsure*: it is the row's only if the endpoint answers a probe.

vLLM answers errors as ``{"error": {"message", "type", "code"}}``, FastChat as
:mod:`~airflow_arcadia.batch.error_codes` says.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

import orjson

from airflow_arcadia.batch import error_codes

CONNECTION_LOST = "connection_lost"
NOT_CONNECTED = "not_connected"
ENGINE_DIED = "engine_died"
LONGEST_RETRY_AFTER_S = 3600.0

_RATE_LIMITS = frozenset({error_codes.RATE_LIMIT, error_codes.OVERLOADED})
_UNAVAILABLE = frozenset({error_codes.NO_WORKER, error_codes.WORKER_TIMEOUT})
_INTERNAL = frozenset({error_codes.INTERNAL, error_codes.OUT_OF_MEMORY})
_UNFINISHED = frozenset({"abort", "error"})
"""vLLM's finish reasons of an answer it gave up on, sent with HTTP 200 when it shuts down."""
_ENDED = frozenset({"completed", "incomplete"})
"""Statuses of a response that was answered, whole or up to its length limit."""
_MESSAGE_CONTENT = ("content", "tool_calls", "reasoning", "reasoning_content", "refusal", "audio")


class Verdict(enum.Enum):
    """Whose failure it is."""

    ROW = "row"
    ENDPOINT = "endpoint"
    JOB = "job"


class Action(enum.Enum):
    """What becomes of a row that failed."""

    FAIL = "becomes an error row"
    RETRY = "is sent again, and that counts"
    RETURN = "is sent again, and that does not count"
    BLAME = "may have killed its engine"


@dataclass(frozen=True)
class Failure:
    """Why a row was not answered this time.

    :param code: for programs; ``message`` is for people.
    :param unsure: the verdict is ROW only if the endpoint answers a probe, else it is ENDPOINT.
    :param retry_after_s: seconds for which the server asked to be left alone.
    :param status: the HTTP status, None when there was no HTTP answer.
    :param error: the server's own error object.
    """

    verdict: Verdict
    code: str
    message: str
    unsure: bool = False
    retry_after_s: float = 0.0
    status: int | None = None
    error: Mapping[str, Any] | None = None

    @property
    def limits_rate(self) -> bool:
        """Whether the endpoint works, and only wants less at a time."""
        return self.code == "rate_limited"


def judge(
    status: int,
    raw: bytes,
    retry_after: str | None = None,
    *,
    now: float = 0.0,
    model_is_listed: bool = True,
) -> dict[str, Any] | Failure:
    """The answer's body when it is whole, else whose failure it is.

    :param now: seconds since the epoch, to understand a ``Retry-After`` that is a date.
    :param model_is_listed: whether the endpoint lists the model that the row asked for.
    """
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError:
        body = None
    if 200 <= status < 300:
        return _judge_answer(body, raw)
    wait = seconds_to_wait(retry_after, now)
    return _judge_error(status, body, raw, wait, model_is_listed=model_is_listed)


def connection_lost(reason: str) -> Failure:
    """The connection ended before the answer did."""
    return Failure(Verdict.ENDPOINT, CONNECTION_LOST, f"The connection was lost: {reason}.")


def not_connected(reason: str) -> Failure:
    """Nothing was sent."""
    return Failure(Verdict.ENDPOINT, NOT_CONNECTED, reason)


def timed_out(seconds: float) -> Failure:
    """No answer in time: a row that runs too long, or an endpoint that does not run."""
    return Failure(Verdict.ROW, "timeout", f"No answer within {seconds:g} s.", unsure=True)


def bad_answer(reason: str) -> Failure:
    """What came back cannot be read."""
    return Failure(Verdict.ROW, "invalid_answer", f"The answer cannot be used: {reason}.", unsure=True)


def decide(failure: Failure, *, well: bool, alone: bool) -> Action:
    """What becomes of the row.

    :param well: whether its endpoint answered a probe after the failure.
    :param alone: whether the endpoint had nothing else to do.
    """
    if failure.code == NOT_CONNECTED or failure.verdict is Verdict.JOB:
        return Action.RETURN
    if failure.verdict is Verdict.ROW and not failure.unsure:
        return Action.FAIL
    if failure.verdict is Verdict.ROW and well:
        return Action.RETRY
    # What an engine gives to all its rows when it dies or hangs.
    died = failure.code == CONNECTION_LOST or (failure.unsure and failure.code in {"server_error", "timeout"})
    # Nobody else was there to take its place: it is refused for what it is.
    return Action.BLAME if died or (alone and well) else Action.RETURN


def backoff(attempt: int, base: float, cap: float, jitter: float) -> float:
    """Seconds before the next attempt: exponential, spread over its upper half.

    :param attempt: attempts so far, 1 or more.
    :param jitter: a random number from 0 to 1.
    """
    longest = min(cap, base * 2.0 ** min(attempt - 1, 30))
    return longest * (0.5 + 0.5 * jitter)


def seconds_to_wait(retry_after: str | None, now: float) -> float:
    """What a ``Retry-After`` of seconds or of an HTTP date asks for; 0 for any other.

    :param now: seconds since the epoch.
    """
    if not retry_after:
        return 0.0
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(retry_after).timestamp() - now
        except (ValueError, TypeError, OverflowError):
            return 0.0
    # NaN compares false with everything.
    return min(seconds, LONGEST_RETRY_AFTER_S) if seconds > 0 else 0.0


def _judge_answer(body: object, raw: bytes) -> dict[str, Any] | Failure:
    if not isinstance(body, dict):
        return bad_answer(f"it is not a JSON object: {_start(raw)}")
    if body.get("object") == "error" or body.get("error"):
        # FastChat's worker protocol reports errors with HTTP 200, and so do some gateways.
        error = body.get("error")
        message = _text(error if isinstance(error, Mapping) else body, raw)
        return Failure(Verdict.ROW, "server_error", message, unsure=True, status=200, error=body)
    reason = _response_fault(body) if body.get("object") == "response" else _content_fault(body, raw)
    return body if reason is None else bad_answer(reason)


def _content_fault(body: Mapping[str, Any], raw: bytes) -> str | None:
    """What is wrong with an answer that is choices, embeddings, scores or rerankings."""
    choices = body.get("choices")
    if isinstance(choices, list) and choices:
        return next((fault for choice in choices if (fault := _choice_fault(choice)) is not None), None)
    # Embeddings and scores are in `data`, rerankings in `results`.
    if any(_is_list_of_objects(body.get(key)) for key in ("data", "results")):
        return None
    return f"it has neither choices nor data nor results: {_start(raw)}"


def _is_list_of_objects(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(part, dict) for part in value)


def _response_fault(body: Mapping[str, Any]) -> str | None:
    """What is wrong with an answer of the Responses API."""
    if body.get("status") not in _ENDED:
        return f"the engine gave up on the row (status {body.get('status')!r})"
    output = body.get("output")
    if not isinstance(output, list) or not all(isinstance(item, dict) for item in output):
        return "it has no output"
    # An empty one is an answer: it was cut off before its first item.
    return None


def _choice_fault(choice: object) -> str | None:
    """What is wrong with one choice of an answer."""
    if not isinstance(choice, dict):
        return "a choice is not an object"
    finish = choice.get("finish_reason")
    if isinstance(finish, str) and finish in _UNFINISHED:
        return f"the engine gave up on the row (finish_reason {finish!r})"
    message = choice.get("message")
    if isinstance(choice.get("text"), str):
        return None
    if isinstance(message, dict) and any(key in message for key in _MESSAGE_CONTENT):
        return None
    return "a choice has no text"


def _judge_error(status: int, body: object, raw: bytes, wait: float, *, model_is_listed: bool) -> Failure:
    error = body.get("error", body) if isinstance(body, Mapping) else {}
    if not isinstance(error, Mapping):
        error = {"message": error}
    message = f"HTTP {status}: {_text(error, raw)}"
    code = error.get("code")
    # A server may put anything there; what cannot be a code of FastChat's must not be looked up as one.
    fastchat = code if isinstance(code, int) else 0

    verdict, name, unsure = _classify(status, fastchat, message, model_is_listed=model_is_listed)
    return Failure(verdict, name, message, unsure, wait, status, error)


def _classify(
    status: int, fastchat: int, message: str, *, model_is_listed: bool
) -> tuple[Verdict, str, bool]:
    """Verdict, code, and whether the verdict is unsure, of an HTTP error."""
    if status == 401 or fastchat == error_codes.AUTHENTICATION:
        found = Verdict.JOB, "unauthorized", False
    elif status == 403:
        # A wrong key, or a firewall that does not like one prompt.
        found = Verdict.ROW, "forbidden", True
    elif status == 429 or fastchat in _RATE_LIMITS:
        found = Verdict.ENDPOINT, "rate_limited", False
    elif status in {502, 503, 504} or fastchat in _UNAVAILABLE:
        found = Verdict.ENDPOINT, "server_error", False
    elif status in {408, 425} or status >= 500 or status < 400 or fastchat in _INTERNAL:
        found = Verdict.ROW, "server_error", True
    elif fastchat == error_codes.CONTEXT_OVERFLOW or error_codes.tells_context_overflow(message):
        found = Verdict.ROW, "context_length_exceeded", False
    elif status == 404:
        # A model that the endpoint lists is there: then something before it does not find the endpoint.
        found = Verdict.ROW, "model_not_found", model_is_listed
    else:
        found = Verdict.ROW, "invalid_request", False
    return found


def _text(error: Mapping[str, Any], raw: bytes) -> str:
    message = error.get("message") or error.get("detail")
    return str(message) if message else _start(raw)


def _start(raw: bytes) -> str:
    return raw[:500].decode("utf-8", "replace")
