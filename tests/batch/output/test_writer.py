"""Commits, and a storage that refuses them for a while."""

import errno

import pytest

from airflow_arcadia.batch.output import writer as module
from airflow_arcadia.batch.output.job import Superseded
from airflow_arcadia.batch.output.segments import Counts, SegmentBuffer
from airflow_arcadia.batch.output.writer import SegmentWriter


class FakeJob:
    """Takes a commit after some that fail."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.states = bytearray(10)
        self.counts = Counts()
        self.committed: list[int] = []

    def commit(self, buffer: SegmentBuffer) -> None:
        if self.errors:
            raise self.errors.pop(0)
        self.committed += buffer.rows


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(module, "_LONGEST_PAUSE_S", 0.005)


def add(writer: SegmentWriter, *rows: int) -> None:
    for row in rows:
        writer.add(row, b"line", failed=False)


@pytest.mark.parametrize(
    "error",
    [
        OSError(5, "503 Slow Down"),
        ConnectionResetError(),
        TimeoutError(),
        RuntimeError("EndpointConnectionError"),
    ],
)
async def test_a_commit_that_the_storage_refuses_is_tried_again(error: Exception):
    job = FakeJob(error, error, error)
    writer = SegmentWriter(job, rows=2, seconds=60.0)  # type: ignore[arg-type]
    add(writer, 1, 2, 3)
    assert writer.has_room
    await writer.flush()
    assert job.committed == [1, 2, 3]


async def test_while_it_is_tried_again_no_more_rows_are_sent_than_answers_fit():
    job = FakeJob(*[OSError(5, "no")] * 20)
    writer = SegmentWriter(job, rows=2, seconds=60.0)  # type: ignore[arg-type]
    add(writer, 1, 2)
    add(writer, 3, 4)
    assert not writer.has_room
    await writer.wait_for_space()
    await writer.flush()
    assert job.committed == [1, 2, 3, 4]


async def test_a_storage_that_refuses_for_too_long_is_told():
    writer = SegmentWriter(FakeJob(*[OSError(5, "no")] * 999), 2, 60.0, patience=0.05)  # type: ignore[arg-type]
    add(writer, 1)
    with pytest.raises(OSError, match="no"):
        await writer.flush()
    assert writer.error is not None


@pytest.mark.parametrize(
    "error",
    [
        Superseded("a later attempt", what_to_do="leave it"),
        OSError(errno.ENOSPC, "full"),
        PermissionError("no"),
        FileNotFoundError("gone"),
        TypeError("a fault"),
    ],
)
async def test_what_no_waiting_mends_is_told_at_once(error: Exception):
    job = FakeJob(error)
    writer = SegmentWriter(job, rows=2, seconds=60.0)  # type: ignore[arg-type]
    add(writer, 1)
    with pytest.raises(type(error)):
        await writer.flush()
    assert job.committed == []
