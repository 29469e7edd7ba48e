"""The first answers and the failed rows of a finished batch, for a person to look at."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from airflow_arcadia.batch.storage import resolve

Storage = Mapping[str, Mapping[str, Any]]
"""Options of file systems by protocol."""
FIRST = 3
"""Answers shown."""
_READ_BYTES = 256 * 1024
_LONGEST_TEXT = 4000
_LONGEST_LINE = 300


def of_output(
    summary: Mapping[str, Any], input_uri: str | None = None, storage: Storage | None = None
) -> dict[str, Any]:
    """The first answers beside their prompts, and the errors by code; ``note`` says why there are none.

    :param summary: what the batch task returned.
    :param input_uri: the rows, for the prompts of the first answers; prompts are shown of plain JSON Lines.
    :param storage: options of file systems by protocol.
    """
    prompts = _first_prompts(input_uri, storage)
    try:
        lines = _first_lines(str(summary["output"]), storage)[:FIRST]
        answers = [_answer(line) | {"prompt": prompts.get(row)} for row, line in enumerate(lines)]
        errors = _first_lines(str(summary["errors"]), storage) if summary.get("errors") else []
    except Exception as error:  # noqa: BLE001 - storage that Airflow's API server cannot read is no fault
        return {"answers": [], "errors": [], "note": f"The output cannot be read from here: {error}"}
    codes = Counter(_code(line) for line in errors)
    counted = [{"code": code, "rows": rows} for code, rows in codes.most_common()]
    return {"answers": answers, "errors": counted, "note": None}


def failed_rows(errors: str, storage: Storage | None = None) -> list[str]:
    """What failed, one line each: rows by error code, then the first few with their messages.

    :param errors: URI of the error rows alone.
    :param storage: options of file systems by protocol. Raises whatever its storage raises.
    """
    lines = _first_lines(errors, storage)
    codes = Counter(_code(line) for line in lines).most_common()
    told = [f"Of the first {len(lines)} error rows: " + ", ".join(f"{rows} {code}" for code, rows in codes)]
    for line in lines[:FIRST]:
        told.append(f"{line.get('custom_id')}: {_code(line)}: {_answer(line)['error']}"[:_LONGEST_LINE])
    return told


def _first_lines(uri: str, storage: Storage | None) -> list[dict[str, Any]]:
    """The whole lines in the file's first bytes."""
    fs, path = resolve(uri, storage)
    with fs.open(path, "rb") as file:
        *lines, rest = file.read(_READ_BYTES).split(b"\n")
    return [json.loads(line) for line in (lines or [rest]) if line]


def _first_prompts(uri: str | None, storage: Storage | None) -> dict[int, str]:
    """Row number → prompt of the first rows; empty where they cannot be read as they stand."""
    if not uri:
        return {}
    try:
        rows = _first_lines(uri, storage)[:FIRST]
    except Exception:  # noqa: BLE001 - answers are shown without their prompts
        return {}
    return {number: text for number, row in enumerate(rows) if (text := _prompt(row))}


def _prompt(row: Mapping[str, Any]) -> str | None:
    given = row.get("body")
    body: Mapping[str, Any] = given if isinstance(given, Mapping) else row
    last = next(iter(reversed(body.get("messages") or ())), None)
    found = last.get("content") if isinstance(last, Mapping) else body.get("prompt", body.get("input"))
    if found is None:
        return None
    return (found if isinstance(found, str) else json.dumps(found))[:_LONGEST_TEXT]


def _answer(line: Mapping[str, Any]) -> dict[str, Any]:
    body = (line.get("response") or {}).get("body") or {}
    choice: Mapping[str, Any] = next(iter(body.get("choices") or ()), {})
    text = (choice.get("message") or {}).get("content") or choice.get("text")
    if text is None:
        text = _response_text(body)
    values = body.get("data") or body.get("results")
    if text is None and values:
        text = json.dumps(values)
    error = line.get("error") or body.get("error")
    return {
        "custom_id": line.get("custom_id"),
        "text": str(text)[:_LONGEST_TEXT] if text is not None else None,
        "error": str((error or {}).get("message") or error)[:_LONGEST_TEXT] if error else None,
    }


def _response_text(body: Mapping[str, Any]) -> str | None:
    """The text of an answer of the Responses API; None where there is none."""
    items = [item for item in body.get("output") or () if item.get("type") == "message"]
    texts = [part.get("text") or "" for item in items for part in item.get("content") or ()]
    return "".join(texts) or None


def _code(line: Mapping[str, Any]) -> str:
    response = line.get("response") or {}
    error = line.get("error") or (response.get("body") or {}).get("error") or {}
    return str(error.get("code") or response.get("status_code") or "unknown")
