"""Turn committed segments into the output: one file in input order, the error rows alone, a summary."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import orjson

from airflow_arcadia.batch.output.job import Job
from airflow_arcadia.batch.output.manifest import JOB
from airflow_arcadia.batch.output.paths import Place
from airflow_arcadia.batch.output.segments import FAILED, DamagedSegment, SegmentReader, read_footer
from airflow_arcadia.batch.spec import BatchSpec, BatchSummary
from airflow_arcadia.batch.storage import sync, temporary_path, write
from airflow_arcadia.exceptions import BatchError

_SEGMENT_BITS = 40
"""A row's place is the number of its segment above this many bits, and the offset in it below."""
_OFFSET_MASK = (1 << _SEGMENT_BITS) - 1
_NOWHERE = (1 << 64) - 1
_WINDOW_ROWS = 1 << 18
"""Rows whose places are known at a time: 2 MiB. Each window reads all footers again."""
_MOST_WINDOWS = 32


def finalise(place: Place, job: Job, summary: BatchSummary, *, keep_segments: bool) -> list[str]:
    """Publish output, errors and summary, then remove the parts.

    Idempotent: the summary is written last, and the parts are removed only after it.

    :return: damaged segments, by name. If there are any, nothing was published and their rows are pending.
    """
    output, errors = temporary_path(job.folder, "output"), temporary_path(job.folder, "errors")
    try:
        if damaged := _merge(job, output, errors):
            return damaged
        job.check_input()
        with job.folder.locked():
            job.check_token()
            if summary.failed:
                place.folder.publish(errors, place.errors)
            else:
                place.folder.remove(place.errors)
            place.folder.publish(output, place.name)
            _write_summary(place, job, summary)
    finally:
        output.unlink(missing_ok=True)
        errors.unlink(missing_ok=True)
    # Without a manifest it no longer counts as an unfinished batch, even if its removal is interrupted.
    job.folder.remove(JOB)
    if not keep_segments:
        job.folder.remove_all()
    return []


def summarise(place: Place, job: Job, spec: BatchSpec, resumed: int) -> BatchSummary:
    """The summary of a job all of whose rows are done.

    :param resumed: rows this attempt found committed.
    """
    counts = job.counts
    gpu_seconds = counts.seconds * spec.num_gpus
    tokens = counts.prompt_tokens + counts.completion_tokens
    return BatchSummary(
        rows=job.manifest.rows,
        ok=counts.ok,
        failed=counts.failed,
        seconds=round(counts.seconds, 3),
        tokens_per_s=round(counts.completion_tokens / counts.seconds, 1) if counts.seconds else 0.0,
        output=place.uri,
        errors=f"{place.uri}.errors.jsonl" if counts.failed else None,
        prompt_tokens=counts.prompt_tokens,
        completion_tokens=counts.completion_tokens,
        model=job.manifest.identity.model,
        attempts=job.attempt.number,
        resumed_rows=resumed,
        gpu_seconds=round(gpu_seconds, 3),
        tokens_per_gpu_second=round(tokens / gpu_seconds, 1) if gpu_seconds else 0.0,
        fingerprint=job.manifest.identity.fingerprint,
        completion_id=job.manifest.epoch,
    )


def _merge(job: Job, output: Path, errors: Path) -> list[str]:
    """Write both files, and return the damaged segments that made that impossible."""
    segments = list(job.segments())
    paths = [path for _, path in segments]
    try:
        with output.open("wb", buffering=1 << 20) as whole, errors.open("wb", buffering=1 << 16) as failed:
            for row, line in enumerate(lines_in_order(paths, job.manifest.rows)):
                if line is None:
                    raise BatchError(
                        f"Row {row + 1} is missing from the committed segments.",
                        what_to_do="Run the batch again: it answers the missing rows.",
                        still_running=f"All other rows are kept in {job.folder.uri}.",
                    )
                whole.write(line)
                whole.write(b"\n")
                if job.states[row] == 2:
                    failed.write(line)
                    failed.write(b"\n")
            sync(whole)
            sync(failed)
    except DamagedSegment as damaged:
        return [name for name, path in segments if path == damaged.path]
    return []


def lines_in_order(paths: Sequence[Path], rows: int) -> Iterator[bytes | None]:
    """The line of each row of the input, in its order; None for a row that is in no segment.

    :param paths: local paths of the segments that count, oldest first.

    Raises :class:`DamagedSegment`.
    """
    step = max(_WINDOW_ROWS, rows // _MOST_WINDOWS + 1)
    reader = SegmentReader(paths)
    try:
        for first in range(0, rows, step):
            for location in _locations(paths, first, min(first + step, rows)):
                if location == _NOWHERE:
                    yield None
                else:
                    yield reader.read(location >> _SEGMENT_BITS, location & _OFFSET_MASK)
    finally:
        reader.close()


def _locations(paths: Sequence[Path], first: int, last: int) -> array[int]:
    """Where the lines of a range of rows are; a row's later segment wins. Raises :class:`DamagedSegment`."""
    found = array("Q", [_NOWHERE]) * (last - first)
    for number, path in enumerate(paths):
        footer = read_footer(path)
        if footer is None:
            raise DamagedSegment(path)
        base = number << _SEGMENT_BITS
        for marked, offset in zip(footer.rows, footer.offsets, strict=True):
            row = marked if marked < FAILED else marked - FAILED
            if first <= row < last:
                found[row - first] = base | offset
    return found


def _write_summary(place: Place, job: Job, summary: BatchSummary) -> None:
    raw = {**summary.to_dict(), "job": asdict(job.manifest)}
    content = orjson.dumps(raw, option=orjson.OPT_INDENT_2)
    # Built in the hidden folder, so that a kill leaves nothing beside the output.
    write(place.folder, place.summary, content, work=job.folder)
