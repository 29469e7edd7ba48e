"""Segments: what answers take in memory before they are committed."""

import tracemalloc
from pathlib import Path

import pytest

from airflow_arcadia.batch.openai_format import answer_line
from airflow_arcadia.batch.output.segments import SegmentBuffer, SegmentReader, read_footer


@pytest.mark.parametrize("answer_bytes", [100, 1500])
def test_answers_take_little_more_memory_than_their_bytes(answer_bytes: int):
    """The bytes that ``orjson`` returns hold on to a far larger allocation: they must not be kept."""
    buffer = SegmentBuffer()
    tracemalloc.start()
    try:
        for row in range(4000):
            body = {"choices": [{"text": "x" * answer_bytes}]}
            buffer.add(row, answer_line(f"{row:024x}", f"id-{row}", body), failed=False)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert buffer.size > 4000 * answer_bytes
    assert held < 1.5 * buffer.size


def test_a_segment_gives_back_its_lines(tmp_path: Path):
    lines = [b"first", b"", b"x" * 10_000, b"last"]
    buffer = SegmentBuffer()
    for row, line in enumerate(lines):
        buffer.add(row, line, failed=False)
    path = tmp_path / "seg"
    buffer.write(path)
    footer = read_footer(path)
    assert footer is not None
    assert list(footer.rows) == [0, 1, 2, 3]
    reader = SegmentReader([path])
    assert [reader.read(0, offset) for offset in footer.offsets] == lines
    reader.close()
