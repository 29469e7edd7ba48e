"""Ask for answers of a JSON schema, and check each against it: an engine may cut one off, or ignore it.

A row's own ``response_format`` counts before the job's schema. Rows at other URLs are not checked.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jsonschema
import orjson
from referencing import Registry
from referencing.exceptions import Unresolvable

from airflow_arcadia.batch.openai_format import CHAT, COMPLETIONS, Request
from airflow_arcadia.batch.spec import NO_ROW_SENT
from airflow_arcadia.exceptions import BatchInputError

_URLS = frozenset({CHAT, COMPLETIONS})
_SHOWN = 200
"""Characters of what is wrong that are told."""


def add_format(url: str, body: dict[str, Any], schema: Mapping[str, Any] | None) -> None:
    """Ask for an answer of the schema, unless the row asks for a format of its own."""
    if schema is not None and url in _URLS:
        format_ = {"name": "answer", "schema": dict(schema)}
        body.setdefault("response_format", {"type": "json_schema", "json_schema": format_})


def check_schema(schema: Mapping[str, Any]) -> None:
    """Raise :class:`BatchInputError` for what is not a JSON schema."""
    try:
        jsonschema.Draft202012Validator.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise BatchInputError(
            f"response_schema is not a JSON schema: {error.message[:_SHOWN]}.",
            what_to_do="Correct it; the dialect is 2020-12.",
            still_running=NO_ROW_SENT,
        ) from error


def problem_of(request: Request, answer: Mapping[str, Any]) -> str | None:
    """Why the answer is not what the row asked for; None when it is.

    Rows that ask for text, or whose answer calls a tool, may be answered with anything.
    """
    asked = request.body.get("response_format")
    if request.url not in _URLS or not isinstance(asked, Mapping):
        return None
    if asked.get("type") not in {"json_schema", "json_object"}:
        return None
    named = asked.get("json_schema")
    schema = named.get("schema") if isinstance(named, Mapping) else None
    choices = answer.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        if isinstance(choice, Mapping) and (told := _problem_of_choice(choice, schema)) is not None:
            return told
    return None


def _problem_of_choice(choice: Mapping[str, Any], schema: object) -> str | None:
    message = choice.get("message")
    text = message.get("content") if isinstance(message, Mapping) else choice.get("text")
    if isinstance(message, Mapping) and message.get("tool_calls") and not text:
        return None
    if not isinstance(text, str):
        return "The answer has no text."
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        cut = "; it was cut off at its length limit" if choice.get("finish_reason") == "length" else ""
        return f"The answer is not JSON: {error}{cut}."
    return _misfit(value, schema) if isinstance(schema, Mapping) else None


def _misfit(value: object, schema: Mapping[str, Any]) -> str | None:
    try:
        misfit = jsonschema.exceptions.best_match(_validator(orjson.dumps(schema)).iter_errors(value))
    except (Unresolvable, RecursionError) as failure:
        return f"The answer cannot be checked: {type(failure).__name__}."
    if misfit is None:
        return None
    return f"The answer does not fit the schema at {misfit.json_path}: {misfit.message[:_SHOWN]}."


@functools.lru_cache(maxsize=64)
def _validator(schema: bytes) -> jsonschema.Draft202012Validator:
    # Without a registry of its own it would fetch what a schema refers to.
    return jsonschema.Draft202012Validator(orjson.loads(schema), registry=Registry())
