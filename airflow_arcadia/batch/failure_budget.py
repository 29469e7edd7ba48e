"""How many rows of a batch may fail. Pure."""

from __future__ import annotations

from airflow_arcadia.batch.output.segments import Counts
from airflow_arcadia.batch.spec import BatchSpec
from airflow_arcadia.exceptions import BatchError

FIRST_ROWS = 100
"""A batch without limits of its own ends when so many rows have failed and none was answered."""


class TooManyFailedRowsError(BatchError):
    """More rows have failed than may; another attempt would find the same rows failed."""

    retryable = False


def exceeded(spec: BatchSpec, counts: Counts, rows: int) -> str | None:
    """What is exceeded, as the beginning of a sentence; None while the batch may go on.

    :param rows: of the whole batch.
    """
    allowed = spec.failed_rows_allowed(rows)
    if allowed is not None:
        if counts.failed <= allowed:
            return None
        return f"{counts.failed} rows have failed, more than the {allowed} allowed"
    if counts.ok or counts.failed < min(FIRST_ROWS, rows):
        return None
    return f"All of the first {counts.failed} rows have failed"


def too_many_failed(what: str, last: str | None, kept_in: str) -> TooManyFailedRowsError:
    """The error that ends the batch.

    :param last: the last row that failed, and why; None when that was in an earlier attempt.
    """
    return TooManyFailedRowsError(
        f"{what}{f'; the last, {last.rstrip(chr(46))}' if last else ''}.",
        what_to_do="Correct the rows, or raise max_failed_rows or max_failed_fraction (1 allows all); "
        "retry_failed_only sends the failed rows again.",
        still_running=f"What was committed is kept in {kept_in}.",
    )
