"""Rows that a program makes, as a file of JSON Lines beside a batch's output."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from airflow_arcadia.batch.spec import NO_ROW_SENT
from airflow_arcadia.batch.storage import folder_at, resolve, write
from airflow_arcadia.exceptions import BatchInputError


def write_rows(
    rows: Iterable[Mapping[str, Any] | str], uri: str, storage: Mapping[str, Mapping[str, Any]] | None = None
) -> int:
    """Write the file whole, unless it has these rows already; returns their number. Idempotent.

    :param rows: each a mapping as a line of an input is, or a prompt.
    :param uri: the file.
    :param storage: options of file systems by protocol.

    Raises :class:`BatchInputError` for what is not a row, and when there is none.
    """
    lines = [_line(row, number) for number, row in enumerate(rows, 1)]
    if not lines:
        raise _refuse("There are no rows.", "Return at least one, or skip the task.")
    fs, path = resolve(uri, storage)
    parent, _, name = path.rpartition("/")
    folder = folder_at(fs, parent or "/", uri.rpartition("/")[0] or "/")
    data = b"\n".join(lines) + b"\n"
    folder.create()
    # A batch goes on only with the input that it began with: one that is equal is not touched.
    if not folder.exists(name) or folder.read(name) != data:
        write(folder, name, data)
    return len(lines)


def _line(row: object, number: int) -> bytes:
    if isinstance(row, str):
        row = {"prompt": row}
    if not isinstance(row, Mapping):
        raise _refuse(
            f"Row {number} is a {type(row).__name__}, not a mapping or a prompt.",
            'Return mappings such as {"messages": […]}, or texts.',
        )
    try:
        return orjson.dumps(dict(row))
    except TypeError as error:
        raise _refuse(f"Row {number} is not JSON: {error}.", "Return values that JSON has.") from error


def _refuse(what: str, what_to_do: str) -> BatchInputError:
    return BatchInputError(what, what_to_do=what_to_do, still_running=NO_ROW_SENT)
