"""The first answers and the failed rows of a finished batch, for a person to look at."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

import fsspec

FIRST = 3
"""Answers shown."""
_READ_BYTES = 256 * 1024
_LONGEST_TEXT = 4000
_LONGEST_LINE = 300


def of_output(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The first answers and the errors by code; ``note`` says why there are none.

    :param summary: what the batch task returned.
    """
    try:
        answers = [_answer(line) for line in _first_lines(str(summary["output"]))[:FIRST]]
        errors = _first_lines(str(summary["errors"])) if summary.get("errors") else []
    except Exception as error:  # noqa: BLE001 - storage that Airflow's API server cannot read is no fault
        return {"answers": [], "errors": [], "note": f"The output cannot be read from here: {error}"}
    codes = Counter(_code(line) for line in errors)
    counted = [{"code": code, "rows": rows} for code, rows in codes.most_common()]
    return {"answers": answers, "errors": counted, "note": None}


def failed_rows(errors: str) -> list[str]:
    """What failed, one line each: rows by error code, then the first few with their messages.

    :param errors: URI of the error rows alone. Raises whatever its storage raises.
    """
    lines = _first_lines(errors)
    codes = Counter(_code(line) for line in lines).most_common()
    told = [f"Of the first {len(lines)} error rows: " + ", ".join(f"{rows} {code}" for code, rows in codes)]
    for line in lines[:FIRST]:
        told.append(f"{line.get('custom_id')}: {_code(line)}: {_answer(line)['error']}"[:_LONGEST_LINE])
    return told


def _first_lines(uri: str) -> list[dict[str, Any]]:
    """The whole lines in the file's first bytes."""
    with fsspec.open(uri, "rb") as file:
        *lines, rest = file.read(_READ_BYTES).split(b"\n")
    return [json.loads(line) for line in (lines or [rest]) if line]


def _answer(line: Mapping[str, Any]) -> dict[str, Any]:
    body = (line.get("response") or {}).get("body") or {}
    choice: Mapping[str, Any] = next(iter(body.get("choices") or ()), {})
    text = (choice.get("message") or {}).get("content") or choice.get("text")
    if text is None and body.get("data"):
        text = json.dumps(body["data"])
    error = line.get("error") or body.get("error")
    return {
        "custom_id": line.get("custom_id"),
        "text": str(text)[:_LONGEST_TEXT] if text is not None else None,
        "error": str((error or {}).get("message") or error)[:_LONGEST_TEXT] if error else None,
    }


def _code(line: Mapping[str, Any]) -> str:
    response = line.get("response") or {}
    error = line.get("error") or (response.get("body") or {}).get("error") or {}
    return str(error.get("code") or response.get("status_code") or "unknown")
