"""The results of a batch as OpenAI's API gives them: the answers in one file, the error rows in another.

The batch itself writes one output with a line for each row. These functions make the two files of it, also
for a batch that ended before all of its rows were done, and read what is committed of one that runs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from airflow_arcadia.batch.input.row_index import Rows, custom_id
from airflow_arcadia.batch.input.source import locate
from airflow_arcadia.batch.openai_format import RowError, error_line, row_id
from airflow_arcadia.batch.output.committed import committed_lines, split, write_committed
from airflow_arcadia.batch.output.job import current_manifest
from airflow_arcadia.batch.output.manifest import Manifest
from airflow_arcadia.batch.output.paths import place_of
from airflow_arcadia.batch.spec import BatchSpec


def read_committed(spec: BatchSpec, *, failed: bool) -> Iterator[bytes]:
    """The lines of the rows that are committed so far, with their ends, in no particular order.

    :param failed: whether to give the error rows; else the answers.
    """
    return committed_lines(place_of(spec).parts, failed=failed)


def write_results(
    spec: BatchSpec, answers: Path, errors: Path, unsent: tuple[str, str] | None
) -> tuple[int, int]:
    """Write the answers and the error rows of a batch that has ended, both in input order.

    :param answers: local path to write to; ``errors`` likewise. Both files are written, if empty.
    :param unsent: code and message of the error row for each row that is not done; None leaves them out.
    :return: how many answers and how many error rows there are.
    """
    place = place_of(spec)
    output = place.folder.fetch(place.name)
    if place.finished() is not None and output.exists():
        return split(output, answers, errors)
    manifest = current_manifest(place.parts)
    if manifest is None:
        # It ended before it had committed a row.
        answers.touch()
        errors.touch()
        return 0, 0
    with _error_rows(spec, manifest, unsent) as error_row:
        return write_committed(place.parts, manifest.rows, answers, errors, error_row)


@contextlib.contextmanager
def _error_rows(
    spec: BatchSpec, manifest: Manifest, unsent: tuple[str, str] | None
) -> Iterator[Callable[[int], bytes | None]]:
    if unsent is None:
        yield lambda _: None
        return
    code, message = unsent
    source, parts = locate(spec), place_of(spec).parts
    rows = Rows(source.local or parts.work / manifest.copy, parts.fetch(manifest.index))

    def error_row(row: int) -> bytes:
        line = rows.read(row)
        identity = row_id(line, row, manifest.identity.row_key)
        return error_line(identity, RowError(custom_id(line, f"row-{row + 1}"), code, message))

    try:
        yield error_row
    finally:
        rows.close()
