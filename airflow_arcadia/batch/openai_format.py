"""Rows in, lines out: the input's forms, and OpenAI's batch output format. Pure.

A row is OpenAI's batch format (``custom_id``, ``method``, ``url``, ``body``) or a short form: an object with
``prompt`` (completion), ``messages`` (chat) or ``input`` (embeddings). A short row is its own request body,
without the envelope's keys ``custom_id``, ``method``, ``url`` and ``metadata``.

Two runs over the same rows must give the same bytes, so what an engine makes up per request (``id``,
``created``, names of tool calls, how much came from its cache) is replaced by what the row determines.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import orjson

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
_CONTENT_KEY = {CHAT: "messages", COMPLETIONS: "prompt", EMBEDDINGS: "input"}
_URL_OF_SHORT_FORM = {"messages": CHAT, "prompt": COMPLETIONS, "input": EMBEDDINGS}
_ENVELOPE = frozenset({"custom_id", "method", "url", "metadata"})
_LENGTH_LIMITS = ("max_tokens", "max_completion_tokens")
_EMBEDDING_PARAMETERS = frozenset(
    {"dimensions", "encoding_format", "truncate_prompt_tokens", "add_special_tokens", "user", "priority"}
)
"""Job-wide parameters an embeddings row takes; the others are about sampling."""

MAX_LINE_BYTES = 64 * 2**20
"""A longer line becomes an error row: it is a broken file, not a prompt."""


class Request(NamedTuple):
    """A row that can be sent."""

    custom_id: str
    url: str
    body: dict[str, Any]


class RowError(NamedTuple):
    """Why a row has no answer: ``code`` for programs, ``message`` for people."""

    custom_id: str
    code: str
    message: str


class BadRow(Exception):
    """A row that cannot be sent; it becomes a :class:`RowError`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def parse_row(
    line: bytes,
    position: int,
    model: str,
    parameters: Mapping[str, Any],
    adapt: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None,
) -> Request | RowError:
    """The request a line asks for, or why it cannot be sent.

    :param position: number of the row, from 0; its default ``custom_id`` is ``row-<position + 1>``.
    :param model: for rows that name none.
    :param parameters: request fields for rows that do not set their own.
    :param adapt: turns the object into one of the forms above; raises :class:`BadRow`.
    """
    custom_id = f"row-{position + 1}"
    if len(line) > MAX_LINE_BYTES:
        return RowError(custom_id, "row_too_long", f"The line has more than {MAX_LINE_BYTES} bytes.")
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return RowError(custom_id, "invalid_json", f"The line is no JSON: {error}.")
    if not isinstance(row, dict):
        return RowError(custom_id, "invalid_row", f"The line is {_kind(row)}, not an object.")
    try:
        custom_id = _custom_id(row, custom_id)
        if adapt is not None:
            row = adapt(row)
        url, body = _url_and_body(row)
        _check_content(url, body)
    except BadRow as bad:
        return RowError(custom_id, bad.code, str(bad))
    return Request(custom_id, url, complete_body(url, body, model, parameters))


def complete_body(
    url: str, body: Mapping[str, Any], model: str, parameters: Mapping[str, Any]
) -> dict[str, Any]:
    """The body with the job's parameters where the row has none of its own."""
    defaults = dict(parameters)
    if url == EMBEDDINGS:
        defaults = {key: value for key, value in defaults.items() if key in _EMBEDDING_PARAMETERS}
    elif any(key in body for key in _LENGTH_LIMITS):
        # Two names of one limit: the engine prefers the newer one, whoever set it.
        for key in _LENGTH_LIMITS:
            defaults.pop(key, None)
    merged = {**defaults, **body}
    if not merged.get("model"):
        merged["model"] = model
    # A batch's answer is one object: what asks for a stream is left out.
    merged.pop("stream", None)
    merged.pop("stream_options", None)
    return merged


def row_id(line: bytes, position: int, job_key: bytes) -> str:
    """What identifies the row: its place, its content and, by ``job_key``, model and parameters (24 hex)."""
    salt = position.to_bytes(16, "little")
    return hashlib.blake2b(line, digest_size=12, key=job_key, salt=salt).hexdigest()


def answer_line(identity: str, custom_id: str, body: dict[str, Any]) -> bytes:
    """A line of the output for an answered row, without a newline."""
    return orjson.dumps(
        {
            "id": f"batch_req_{identity}",
            "custom_id": custom_id,
            "response": {
                "status_code": 200,
                "request_id": f"req_{identity}",
                "body": _normalise(body, identity),
            },
            "error": None,
        }
    )


def error_line(identity: str, error: RowError) -> bytes:
    """A line of the output for a row without an answer, without a newline."""
    return orjson.dumps(
        {
            "id": f"batch_req_{identity}",
            "custom_id": error.custom_id,
            "response": None,
            "error": {"code": error.code, "message": error.message},
        }
    )


def _custom_id(row: Mapping[str, Any], default: str) -> str:
    given = row.get("custom_id")
    if given is None or given == "":
        return default
    if isinstance(given, str) or (isinstance(given, int) and not isinstance(given, bool)):
        return str(given)
    raise BadRow("invalid_row", f"custom_id is {_kind(given)}, not a text.")


def _url_and_body(row: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    url = row.get("url")
    method = row.get("method", "POST")
    if method != "POST":
        raise BadRow("invalid_row", f"method is {method!r}; only POST is known.")
    if url is not None and not (isinstance(url, str) and url in _CONTENT_KEY):
        raise BadRow("unsupported_url", f"url is {url!r}; known are {', '.join(_CONTENT_KEY)}.")
    if "body" in row:
        body = row["body"]
        if not isinstance(body, dict):
            raise BadRow("invalid_row", f"body is {_kind(body)}, not an object.")
    else:
        body = {key: value for key, value in row.items() if key not in _ENVELOPE}
    if url is None:
        url = next((url for key, url in _URL_OF_SHORT_FORM.items() if key in body), None)
        if url is None:
            raise BadRow("no_prompt", "The row has none of prompt, messages and input.")
    return url, body


def _check_content(url: str, body: Mapping[str, Any]) -> None:
    key = _CONTENT_KEY[url]
    content = body.get(key)
    if content is None:
        raise BadRow("no_prompt", f"The row has no {key}.")
    wanted = list if url == CHAT else (str, list)
    if not isinstance(content, wanted):
        raise BadRow("invalid_row", f"{key} is {_kind(content)}.")
    if not content:
        raise BadRow("no_prompt", f"{key} is empty.")
    if url == CHAT and not all(isinstance(message, dict) and message.get("role") for message in content):
        raise BadRow("invalid_row", "Each of messages must be an object with a role.")
    if not isinstance(body.get("model", ""), (str, type(None))):
        raise BadRow("invalid_row", f"model is {_kind(body['model'])}, not a text.")


def _normalise(body: dict[str, Any], identity: str) -> dict[str, Any]:
    if isinstance(body.get("id"), str):
        # The engine's ids read "chatcmpl-<random>": keep the kind.
        body["id"] = f"{body['id'].partition('-')[0]}-{identity}"
    if "created" in body:
        body["created"] = 0
    if "metrics" in body:
        body["metrics"] = None
    usage = body.get("usage")
    if isinstance(usage, dict) and "prompt_tokens_details" in usage:
        usage["prompt_tokens_details"] = None
    choices = body.get("choices")
    for index, choice in enumerate(choices if isinstance(choices, list) else ()):
        message = choice.get("message") if isinstance(choice, dict) else None
        calls = message.get("tool_calls") if isinstance(message, dict) else None
        for number, call in enumerate(calls if isinstance(calls, list) else ()):
            if isinstance(call, dict):
                call["id"] = f"call_{identity}_{index}_{number}"
    return body


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
