"""Open a finished batch again, to send its failed rows once more."""

from __future__ import annotations

from pathlib import Path

import orjson

from airflow_arcadia.batch.output.job import Job, Manifest
from airflow_arcadia.batch.output.segments import SegmentBuffer
from airflow_arcadia.batch.spec import BatchSummary
from airflow_arcadia.batch.storage import Folder

_ROWS = 4096


def reopen(parts: Folder, manifest: Manifest, summary: BatchSummary, output: Path) -> None:
    """Fill the folder with the output's rows as committed segments, and its manifest last.

    :param output: a local copy of the finished output.
    """
    job = Job.claim(parts, manifest)
    buffer = SegmentBuffer()
    buffer.counts.prompt_tokens = summary.prompt_tokens
    buffer.counts.completion_tokens = summary.completion_tokens
    buffer.counts.seconds = summary.seconds
    with output.open("rb") as file:
        for row, line in enumerate(file):
            buffer.add(row, line.rstrip(b"\n"), failed=orjson.loads(line)["error"] is not None)
            if len(buffer.lines) == _ROWS:
                job.commit(buffer)
                buffer = SegmentBuffer()
    if buffer.lines:
        job.commit(buffer)
    manifest.write(parts)
