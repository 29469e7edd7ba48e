"""How a row of the input becomes a request: which column is the prompt, and what goes with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jinja2
import orjson
from jinja2.sandbox import SandboxedEnvironment

from airflow_arcadia.batch.input.source import is_table
from airflow_arcadia.batch.openai_format import BadRow, Request, RowError, parse_row
from airflow_arcadia.batch.spec import NO_ROW_SENT, BatchSpec
from airflow_arcadia.exceptions import BatchInputError

_OWN_PARAMETERS = frozenset(
    {"model", "max_tokens", "max_completion_tokens", "min_tokens", "temperature", "top_p", "top_k", "min_p"}
    | {"seed", "stop", "n", "presence_penalty", "frequency_penalty", "repetition_penalty", "response_format"}
)
"""Columns that are request fields beside the prompt; all others are the template's."""


class Shape:
    """The one way a spec reads rows.

    :param model: for rows that name none.

    Raises :class:`BatchInputError` for a template that is none.
    """

    def __init__(self, spec: BatchSpec, model: str) -> None:
        self._model, self._parameters = model, dict(spec.parameters)
        self._column, self._as_chat = spec.prompt_column, spec.prompt_as == "chat"
        self._table = is_table(spec)
        self._template = _compile(spec.prompt_template)
        self._plain = not (self._column or self._template or self._table or self._as_chat)

    def parse(self, line: bytes, row: int) -> Request | RowError:
        """The request of a row, or why there is none."""
        adapt = None if self._plain else self._adapt
        return parse_row(line, row, self._model, self._parameters, adapt)

    def _adapt(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        if self._template is None and self._column is None and not self._table:
            return _to_chat(row) if isinstance(row.get("prompt"), str) else row
        adapted = {key: _value(row[key]) for key in _OWN_PARAMETERS & row.keys()}
        adapted = {key: value for key, value in adapted.items() if value is not None}
        if row.get("custom_id") is not None:
            adapted["custom_id"] = row["custom_id"]
        if self._template is None and self._column is None and row.get("prompt") is None:
            # Parquet can hold messages and what to embed as such.
            ready = {key: row[key] for key in ("messages", "input") if row.get(key) is not None}
            return {**adapted, **ready}
        adapted["prompt"] = self._prompt(row)
        return _to_chat(adapted) if self._as_chat else adapted

    def _prompt(self, row: Mapping[str, Any]) -> Any:
        if self._template is None:
            return row.get(self._column or "prompt")
        try:
            return self._template.render(row)
        except Exception as error:
            # The template runs over the row's own data: any of its errors is the row's.
            raise BadRow("template_error", f"The prompt's template fails: {error}.") from error


def _compile(template: str | None) -> jinja2.Template | None:
    if template is None:
        return None
    try:
        # Sandboxed: the template may come from a form.
        return SandboxedEnvironment(undefined=jinja2.StrictUndefined).from_string(template)
    except jinja2.TemplateSyntaxError as error:
        raise BatchInputError(
            f"prompt_template is no Jinja template: {error}.",
            what_to_do="Correct it.",
            still_running=NO_ROW_SENT,
        ) from error


def _to_chat(row: Mapping[str, Any]) -> dict[str, Any]:
    chat = {key: value for key, value in row.items() if key != "prompt"}
    return {**chat, "messages": [{"role": "user", "content": row["prompt"]}]}


def _value(value: Any) -> Any:
    """A CSV cell as what it says: a number where it is one, nothing where it is empty."""
    if not isinstance(value, str):
        return value
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError:
        return value or None
