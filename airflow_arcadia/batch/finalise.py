"""Turn committed segments into the output: one file in input order, the error rows alone, a summary."""

from __future__ import annotations

from array import array
from dataclasses import asdict
from pathlib import Path

import orjson

from airflow_arcadia.batch.door import Place
from airflow_arcadia.batch.job import JOB, Job
from airflow_arcadia.batch.segments import FAILED, DamagedSegment, SegmentReader
from airflow_arcadia.batch.spec import BatchSpec, BatchSummary
from airflow_arcadia.batch.storage import sync, write

_SEGMENT_BITS = 40
"""A row's place is the number of its segment above this many bits, and the offset in it below."""
_OFFSET_MASK = (1 << _SEGMENT_BITS) - 1


def finalise(place: Place, job: Job, summary: BatchSummary, *, keep_segments: bool) -> list[str]:
    """Publish output, errors and summary, then remove the parts.

    Whatever ends this half-way, doing it again gives the same files: the summary comes last, and the parts
    are removed only after it.

    :return: damaged segments, by name. Unless there is none, nothing was published and their rows are to do.
    """
    segments = job.segments()
    names = {path: name for name, path, _ in segments}
    locations = array("Q", bytes(8 * job.manifest.rows))
    for number, (_, _, footer) in enumerate(segments):
        base = number << _SEGMENT_BITS
        for row, offset in zip(footer.rows, footer.offsets, strict=True):
            locations[row if row < FAILED else row - FAILED] = base | offset
    output, errors = job.folder.work / ".tmp-output", job.folder.work / ".tmp-errors"
    try:
        try:
            _merge(job, [path for _, path, _ in segments], locations, output, errors)
        except DamagedSegment as damaged:
            return [names[damaged.path]]
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
    # Without its manifest the folder is no unfinished batch any more, however far its removal gets.
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
        attempts=job.attempt.token,
        resumed_rows=resumed,
        gpu_seconds=round(gpu_seconds, 3),
        tokens_per_gpu_second=round(tokens / gpu_seconds, 1) if gpu_seconds else 0.0,
        fingerprint=job.manifest.identity.fingerprint,
    )


def _merge(job: Job, paths: list[Path], locations: array[int], output: Path, errors: Path) -> None:
    reader = SegmentReader(paths)
    states = job.states
    try:
        with output.open("wb", buffering=1 << 20) as whole, errors.open("wb", buffering=1 << 16) as failed:
            for row, location in enumerate(locations):
                line = reader.read(location >> _SEGMENT_BITS, location & _OFFSET_MASK)
                whole.write(line)
                whole.write(b"\n")
                if states[row] == 2:
                    failed.write(line)
                    failed.write(b"\n")
            sync(whole)
            sync(failed)
    finally:
        reader.close()


def _write_summary(place: Place, job: Job, summary: BatchSummary) -> None:
    raw = {**summary.to_dict(), "job": asdict(job.manifest)}
    write(place.folder, place.summary, orjson.dumps(raw, option=orjson.OPT_INDENT_2))
