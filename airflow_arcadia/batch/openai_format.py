"""Parse rows of the input, and write lines in OpenAI's batch output format. Pure.

A row is OpenAI's batch format (``custom_id``, ``method``, ``url``, ``body``) or a short form: an object with
``prompt`` (completion), ``messages`` (chat) or ``input`` (embeddings), or of any kind if it has a ``url``. A
short row is its own request body, without the envelope's keys ``custom_id``, ``method``, ``url`` and
``metadata``.

Two runs over the same rows must give the same bytes, so values that a server generates per request (``id``,
``created``, ids of tool calls, how much came from its cache) are replaced by values that the row determines.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import orjson

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
RESPONSES, SCORE, RERANK = "/v1/responses", "/v1/score", "/v1/rerank"
_TYPES: dict[str, tuple[type, ...]] = {CHAT: (list,), SCORE: (str, list, dict), RERANK: (str, list, dict)}
"""URL → what its content may be; a text or a list for all others."""
URLS = (CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES, SCORE, RERANK)
"""What a row may ask for."""
_POOLING = frozenset({EMBEDDINGS, SCORE, RERANK})
"""URLs at which nothing is generated."""
_CONTENT_KEYS = {
    CHAT: (("messages",),),
    COMPLETIONS: (("prompt",),),
    EMBEDDINGS: (("input",),),
    RESPONSES: (("input",),),
    SCORE: (("queries", "documents"), ("queries", "items"), ("text_1", "text_2"), ("data_1", "data_2")),
    RERANK: (("query", "documents"),),
}
"""URL → the fields that are its prompt, one of several sets of them."""
_URL_OF_SHORT_FORM = {"messages": CHAT, "prompt": COMPLETIONS, "input": EMBEDDINGS}
_ENVELOPE = frozenset({"custom_id", "method", "url", "metadata"})
_LENGTH_LIMITS = ("max_tokens", "max_completion_tokens")
_OF_THE_SERVER = ("system_fingerprint", "metrics", "kv_transfer_params", "ec_transfer_params")
"""Fields of an answer that describe the server or its timing, not what the row determines."""
_POOLING_PARAMETERS = frozenset(
    {"dimensions", "encoding_format", "truncate_prompt_tokens", "add_special_tokens", "user", "priority"}
    | {"top_n", "use_activation", "instruction", "max_tokens_per_query", "max_tokens_per_doc"}
)
"""Job-wide parameters that rows take which generate nothing; the others are about sampling."""
_NOT_IN_A_BATCH = ("stream", "stream_options", "background")
"""Fields that would have an answer come otherwise than as one object."""

MAX_LINE_BYTES = 64 * 2**20
"""A longer line becomes an error row: it is more likely a broken file than a prompt."""


class Request(NamedTuple):
    """A row that can be sent."""

    custom_id: str
    url: str
    body: dict[str, Any]


class RowError(NamedTuple):
    """Why a row has no answer: ``code`` for programs, ``message`` for people.

    :param status: HTTP status of the server's answer; None when the row was not sent or got no answer.
    :param error: the server's own error object.
    """

    custom_id: str
    code: str
    message: str
    status: int | None = None
    error: Mapping[str, Any] | None = None


class BadRow(Exception):
    """A row that cannot be sent; it becomes a :class:`RowError`.

    :param custom_id: the row's, where it is known although the row cannot be read.
    """

    def __init__(self, code: str, message: str, custom_id: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.custom_id = custom_id


def complete_body(
    url: str, body: Mapping[str, Any], model: str, parameters: Mapping[str, Any]
) -> dict[str, Any]:
    """The body with the job's parameters where the row has none of its own."""
    defaults = dict(parameters)
    if url in _POOLING:
        defaults = {key: value for key, value in defaults.items() if key in _POOLING_PARAMETERS}
    elif url == RESPONSES:
        limits = [defaults.pop(key) for key in _LENGTH_LIMITS if key in defaults]
        # The server need not keep what nobody will ask it for again.
        defaults |= {"store": False} | ({"max_output_tokens": limits[-1]} if limits else {})
    elif any(key in body for key in _LENGTH_LIMITS):
        # Two names of one limit: the engine prefers the newer one, even if only the job set it.
        for key in _LENGTH_LIMITS:
            defaults.pop(key, None)
    merged = {**defaults, **body}
    if not merged.get("model"):
        merged["model"] = model
    for key in _NOT_IN_A_BATCH:
        merged.pop(key, None)
    return merged


def content_of(body: Mapping[str, Any]) -> Any:
    """What the answer of a row depends on most: its messages, its prompt or its texts."""
    for keys in (keys for choices in _CONTENT_KEYS.values() for keys in choices):
        if all(body.get(key) for key in keys):
            return body[keys[0]] if len(keys) == 1 else [body[key] for key in keys]
    return None


def body_bytes(body: Mapping[str, Any]) -> bytes:
    """The body as it is sent. Raises TypeError when it is nested too deeply to be written.

    A copy: the bytes that orjson returns keep an allocation of two to ten times their size, and these live
    until the row is answered.
    """
    return bytes(memoryview(orjson.dumps(body)))


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


def invalid_line(identity: str, custom_id: str, message: str, body: dict[str, Any]) -> bytes:
    """A line of the output for an answer that is not what the row asked for: both, without a newline."""
    response = {"status_code": 200, "request_id": f"req_{identity}", "body": _normalise(body, identity)}
    error = {"code": "invalid_output", "message": message}
    return orjson.dumps(
        {"id": f"batch_req_{identity}", "custom_id": custom_id, "response": response, "error": error}
    )


def error_line(identity: str, error: RowError) -> bytes:
    """A line of the output for a row without an answer, without a newline.

    As in OpenAI's error files: what a server refused has its status and its error in ``response``, and
    everything else (a row that cannot be sent, no answer) is in ``error``.
    """
    refused = error.status is not None and error.status != 200
    line = {
        "id": f"batch_req_{identity}",
        "custom_id": error.custom_id,
        "response": {
            "status_code": error.status,
            "request_id": f"req_{identity}",
            "body": {"error": _error_object(error)},
        }
        if refused
        else None,
        "error": None if refused else {"code": error.code, "message": error.message},
    }
    return orjson.dumps(line, default=str)


def is_answered(row: Mapping[str, Any]) -> bool:
    """Whether a row of the output, as an object, is an answer and not an error row."""
    return row["error"] is None and row["response"]["status_code"] == 200


def _error_object(error: RowError) -> dict[str, Any]:
    """OpenAI's error object: the server's words, and our code where its own only repeats the status."""
    given = error.error or {}
    message, kind, code = given.get("message"), given.get("type"), given.get("code")
    return {
        "message": message if isinstance(message, str) and message else error.message,
        "type": kind
        if isinstance(kind, str)
        else "server_error"
        if (error.status or 0) >= 500
        else "invalid_request_error",
        "param": given.get("param") if isinstance(given.get("param"), str) else None,
        "code": code if isinstance(code, str) and code and not code.isdigit() else error.code,
    }


def custom_id_of(row: Mapping[str, Any], default: str) -> str:
    """The row's own id as a text, or the default. Raises :class:`BadRow`."""
    given = row.get("custom_id")
    if given is None or given == "":
        return default
    if isinstance(given, str) or (isinstance(given, int) and not isinstance(given, bool)):
        return str(given)
    # JSON numbers beyond 64 bits are read as fractions, and would not be the same id any more.
    raise BadRow("invalid_row", f"custom_id is {kind_of(given)}, not a text or an integer of 64 bits.")


def url_and_body(row: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Where a row goes, and its own part of the request. Raises :class:`BadRow`."""
    url = row.get("url")
    method = row.get("method", "POST")
    if method != "POST":
        raise BadRow("invalid_row", f"method is {method!r}; only POST is known.")
    if url is not None and not (isinstance(url, str) and url in URLS):
        raise BadRow("unsupported_url", f"url is {url!r}; known are {', '.join(URLS)}.")
    if "body" in row:
        body = row["body"]
        if not isinstance(body, dict):
            raise BadRow("invalid_row", f"body is {kind_of(body)}, not an object.")
    else:
        body = {key: value for key, value in row.items() if key not in _ENVELOPE}
    if url is None:
        url = next((url for key, url in _URL_OF_SHORT_FORM.items() if key in body), None)
        if url is None:
            raise BadRow("no_prompt", "The row has none of prompt, messages and input.")
    return url, body


def check_content(url: str, body: Mapping[str, Any]) -> None:
    """Raise :class:`BadRow` for a body without a prompt that can be one."""
    choices = _CONTENT_KEYS[url]
    keys = next((keys for keys in choices if all(body.get(key) is not None for key in keys)), None)
    if keys is None:
        wanted = " or ".join(" and ".join(keys) for keys in choices)
        raise BadRow("no_prompt", f"The row has no {wanted}.")
    for key in keys:
        content = body[key]
        if not isinstance(content, _TYPES.get(url, (str, list))):
            raise BadRow("invalid_row", f"{key} is {kind_of(content)}.")
        if not content:
            raise BadRow("no_prompt", f"{key} is empty.")
    messages = body["messages"] if url == CHAT else ()
    if not all(isinstance(message, dict) and message.get("role") for message in messages):
        raise BadRow("invalid_row", "Each of messages must be an object with a role.")
    if not isinstance(body.get("model", ""), (str, type(None))):
        raise BadRow("invalid_row", f"model is {kind_of(body['model'])}, not a text.")


def _normalise(body: dict[str, Any], identity: str) -> dict[str, Any]:
    if body.get("object") == "response":
        return _normalise_response(body, identity)
    if "id" in body:
        # Servers generate ids of many forms; none is kept.
        body["id"] = f"{_id_prefix(body)}-{identity}"
    if "created" in body:
        body["created"] = 0
    for key in _OF_THE_SERVER:
        if key in body:
            body[key] = None
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
        audio = message.get("audio") if isinstance(message, dict) else None
        if isinstance(audio, dict) and "id" in audio:
            audio["id"], audio["expires_at"] = f"audio_{identity}_{index}", 0
    return body


_RESPONSE_PREFIXES = {"message": "msg", "reasoning": "rs", "function_call": "fc"}
"""Kind of an item of a response → what OpenAI's own ids of it begin with."""


def _normalise_response(body: dict[str, Any], identity: str) -> dict[str, Any]:
    """The same for the Responses API, whose answer is a list of items with ids of their own."""
    body["id"] = f"resp_{identity}"
    for key in ("created_at", "completed_at"):
        if body.get(key) is not None:
            body[key] = 0
    for key in _OF_THE_SERVER:
        if key in body:
            body[key] = None
    items = body.get("output")
    for index, item in enumerate(items if isinstance(items, list) else ()):
        if isinstance(item, dict):
            prefix = _RESPONSE_PREFIXES.get(str(item.get("type")), "item")
            item["id"] = f"{prefix}_{identity}_{index}"
            if "call_id" in item:
                item["call_id"] = f"call_{identity}_{index}"
    usage = body.get("usage")
    if isinstance(usage, dict) and isinstance(details := usage.get("input_tokens_details"), dict):
        # How much came from the cache depends on what the server did before. Clients insist on numbers.
        usage["input_tokens_details"] = {key: _zero(value) for key, value in details.items()}
    return body


def _zero(value: object) -> object:
    return 0 if isinstance(value, int) else [] if isinstance(value, list) else None


def _id_prefix(body: Mapping[str, Any]) -> str:
    """What OpenAI's own ids of this kind of answer begin with."""
    choices = body.get("choices")
    if "results" in body:
        return "rerank"
    if not isinstance(choices, list):
        rows = body.get("data")
        first = rows[0] if isinstance(rows, list) and rows else None
        return "score" if isinstance(first, dict) and "score" in first else "embd"
    chat = any(isinstance(choice, dict) and "message" in choice for choice in choices)
    return "chatcmpl" if chat else "cmpl"


def kind_of(value: object) -> str:
    """A JSON value's type, for messages."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
