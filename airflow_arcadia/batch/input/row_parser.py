"""How a row of the input becomes a request: which column is the prompt, and what goes with it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import orjson

from airflow_arcadia.batch.input.source import READY_CONTENT, is_table
from airflow_arcadia.batch.input.template_process import TemplateError, TemplateProcess
from airflow_arcadia.batch.openai_format import (
    MAX_LINE_BYTES,
    BadRow,
    Request,
    RowError,
    check_content,
    complete_body,
    custom_id_of,
    kind_of,
    url_and_body,
)
from airflow_arcadia.batch.response_schema import add_format, check_schema
from airflow_arcadia.batch.spec import NO_ROW_SENT, BatchSpec
from airflow_arcadia.exceptions import BatchInputError

_TEXT_PARAMETERS = frozenset({"model", "stop", "suffix", "user", "cache_salt", "chat_template"})
"""Request fields that are texts: a CSV cell "3" in them stays text."""
_SUSPICIOUS_DEPTH = 200
"""orjson reads 1,024 levels of nesting and writes 254."""


class Shape:
    """The one way a spec reads rows.

    :param model: for rows that name none.

    Raises :class:`BatchInputError` for a template or a schema that is not valid.
    """

    def __init__(self, spec: BatchSpec, model: str) -> None:
        self._model, self._parameters = model, dict(spec.parameters)
        self._column, self._as_chat = spec.prompt_column, spec.prompt_as == "chat"
        self._columns = tuple(spec.columns_as_parameters)
        self._table = is_table(spec)
        self._response_schema = spec.response_schema
        if spec.response_schema is not None:
            check_schema(spec.response_schema)
        self._template = _compile(spec.prompt_template)
        self._read_by_template = self._template.names if self._template is not None else frozenset()

    def parse(self, line: bytes, row: int) -> Request | RowError:
        """The request of a row, or why there is none.

        :param row: its number, from 0; its default ``custom_id`` is ``row-<row + 1>``.
        """
        custom_id = f"row-{row + 1}"
        try:
            found = _load(line, table=self._table)
            custom_id = custom_id_of(found, custom_id)
            url, body = url_and_body(self._adapt(found))
            check_content(url, body)
            whole = complete_body(url, body, self._model, self._parameters)
            add_format(url, whole, self._response_schema)
            if line.count(b"[") + line.count(b"{") > _SUSPICIOUS_DEPTH:
                _check_depth(whole)
        except BadRow as bad:
            return RowError(bad.custom_id or custom_id, bad.code, str(bad))
        return Request(custom_id, url, whole)

    async def parse_async(self, line: bytes, row: int) -> Request | RowError:
        """:meth:`parse`, which a template must not keep the event loop waiting for."""
        if self._template is None:
            return self.parse(line, row)
        return await asyncio.to_thread(self.parse, line, row)

    def _adapt(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """The row as one of the forms that :mod:`~airflow_arcadia.batch.openai_format` knows."""
        if self._table:
            adapted = self._of_table(row)
        elif self._template is not None or self._column is not None:
            # What the template reads is the template's; everything else is the request's.
            adapted = {key: value for key, value in row.items() if key not in self._read_by_template}
            if self._column is not None:
                adapted.pop(self._column, None)
            adapted["prompt"] = self._prompt(row)
        else:
            adapted = dict(row)
        return _to_chat(adapted) if self._as_chat and _is_prompt(adapted) else adapted

    def _of_table(self, row: Mapping[str, Any]) -> dict[str, Any]:
        values = ((key, _value(key, row.get(key))) for key in self._columns)
        adapted = {key: value for key, value in values if value is not None}
        if self._template is None and self._column is None and row.get("prompt") is None:
            return {**adapted, **{key: row[key] for key in READY_CONTENT if row.get(key) is not None}}
        return {**adapted, "prompt": self._prompt(row)}

    def _prompt(self, row: Mapping[str, Any]) -> Any:
        if self._template is None:
            return row.get(self._column or "prompt")
        try:
            prompt = self._template.render(row)
            prompt.encode()
        except (TemplateError, UnicodeEncodeError) as error:
            raise BadRow("template_error", f"prompt_template fails on this row: {error}.") from error
        return prompt


def _load(line: bytes, *, table: bool) -> dict[str, Any]:
    if len(line) > MAX_LINE_BYTES:
        raise BadRow("row_too_long", f"The line has more than {MAX_LINE_BYTES} bytes.")
    try:
        found = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise BadRow("invalid_json", f"The line is not valid JSON: {error}.") from error
    if table and isinstance(found, list):
        # What :mod:`tables` says of a record that cannot be read.
        raise BadRow(*found)
    if not isinstance(found, dict):
        raise BadRow("invalid_row", f"The line is {kind_of(found)}, not an object.")
    return found


def _compile(template: str | None) -> TemplateProcess | None:
    if template is None:
        return None
    try:
        return TemplateProcess(template)
    except TemplateError as error:
        raise BatchInputError(
            f"prompt_template is not a valid Jinja template: {error}.",
            what_to_do="Correct it.",
            still_running=NO_ROW_SENT,
        ) from error


def _is_prompt(row: Mapping[str, Any]) -> bool:
    return isinstance(row.get("prompt"), str)


def _to_chat(row: Mapping[str, Any]) -> dict[str, Any]:
    chat = {key: value for key, value in row.items() if key != "prompt"}
    return {**chat, "messages": [{"role": "user", "content": row["prompt"]}]}


def _value(name: str, value: Any) -> Any:
    """A CSV cell as what it says: a number where it is one, nothing where it is empty."""
    if not isinstance(value, str) or (name in _TEXT_PARAMETERS and not value.startswith("[")):
        return value if value != "" else None
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError:
        return value or None


def _check_depth(body: Mapping[str, Any]) -> None:
    try:
        orjson.dumps(body)
    except TypeError as error:
        raise BadRow("invalid_row", f"The row cannot be written as JSON again: {error}.") from error
