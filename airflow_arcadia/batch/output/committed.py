"""Read what an unfinished batch has committed, and write it down when the batch ends before its end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import orjson

from airflow_arcadia.batch.openai_format import is_answered
from airflow_arcadia.batch.output.job import counted_segments
from airflow_arcadia.batch.output.merge import lines_in_order
from airflow_arcadia.batch.output.segments import FAILED, DamagedSegment, SegmentReader, read_footer
from airflow_arcadia.batch.storage import Folder, sync

_MORE_ROWS = 4096


def committed_lines(folder: Folder, *, failed: bool) -> Iterator[bytes]:
    """The lines of committed rows with their ends, segment by segment, each row once.

    :param failed: whether to give the error rows; else the answers.

    Raises FileNotFoundError when the batch ends meanwhile and removes its segments.
    """
    seen = bytearray()
    for name in counted_segments(folder):
        path = folder.fetch(name)
        footer = read_footer(path)
        if footer is None:
            continue
        reader = SegmentReader([path])
        try:
            for marked, offset in zip(footer.rows, footer.offsets, strict=True):
                row = marked & ~FAILED
                if len(seen) <= row:
                    seen.extend(bytes(row + _MORE_ROWS - len(seen)))
                if (marked >= FAILED) == failed and not seen[row]:
                    seen[row] = 1
                    yield reader.read(0, offset) + b"\n"
        except DamagedSegment:
            # Found and answered again when the batch is finalised.
            continue
        finally:
            reader.close()


def write_committed(
    folder: Folder, rows: int, answers: Path, errors: Path, unsent: Callable[[int], bytes | None]
) -> tuple[int, int]:
    """Write the answers and the error rows, each in input order, to a file of their own.

    :param rows: how many the input has.
    :param unsent: the error row's line for a row that is not committed, by its number; None leaves it out.
    :return: how many answers and how many error rows were written.
    """
    paths = [folder.fetch(name) for name in counted_segments(folder)]
    paths = [path for path in paths if read_footer(path) is not None]
    while True:
        try:
            return _write(lines_in_order(paths, rows), answers, errors, unsent)
        except DamagedSegment as damaged:
            # Its rows count as not committed.
            paths.remove(damaged.path)


def split(output: Path, answers: Path, errors: Path) -> tuple[int, int]:
    """Write the answers and the error rows of a finished output, in its order, to a file of their own.

    :return: how many answers and how many error rows there are.
    """
    with output.open("rb") as file:
        return _write((line.rstrip(b"\n") for line in file), answers, errors, lambda _: None)


def _write(
    lines: Iterator[bytes | None], answers: Path, errors: Path, unsent: Callable[[int], bytes | None]
) -> tuple[int, int]:
    answered = failed = 0
    with answers.open("wb", buffering=1 << 20) as good, errors.open("wb", buffering=1 << 16) as bad:
        for row, committed in enumerate(lines):
            line = committed if committed is not None else unsent(row)
            if line is None:
                continue
            if committed is not None and is_answered(orjson.loads(line)):
                answered += 1
                good.write(line + b"\n")
            else:
                failed += 1
                bad.write(line + b"\n")
        sync(good)
        sync(bad)
    return answered, failed
