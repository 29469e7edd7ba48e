"""Segments are the checkpoint, and only the last attempt may commit."""

from dataclasses import replace
from pathlib import Path

import pytest

from airflow_arcadia.batch.output.job import FolderRemoved, Job, Superseded
from airflow_arcadia.batch.output.manifest import Identity, Manifest
from airflow_arcadia.batch.output.segments import SegmentBuffer
from airflow_arcadia.batch.storage import LocalFolder

MANIFEST = Manifest(Identity("i", "m", "p"), 6, "i", "s", None, "epoch")


def folder_in(path: Path) -> LocalFolder:
    folder = LocalFolder(path)
    folder.create()
    return folder


def buffer_of(*rows: int, failed: bool = False) -> SegmentBuffer:
    buffer = SegmentBuffer()
    for row in rows:
        buffer.add(row, b"line %d" % row, failed=failed)
    return buffer


def test_what_was_committed_is_done_for_the_next_attempt(tmp_path: Path):
    first = Job.claim(folder_in(tmp_path), MANIFEST)
    first.commit(buffer_of(4, 1))
    first.commit(buffer_of(2, failed=True))
    second = Job.claim(folder_in(tmp_path), MANIFEST)
    assert list(second.pending()) == [0, 3, 5]
    assert (second.counts.ok, second.counts.failed) == (2, 1)
    assert second.attempt.token == 2


def test_an_attempt_thought_dead_cannot_commit_over_its_successor(tmp_path: Path):
    first = Job.claim(folder_in(tmp_path), MANIFEST)
    first.commit(buffer_of(0))
    second = Job.claim(folder_in(tmp_path), MANIFEST)
    with pytest.raises(Superseded, match="Attempt 1"):
        first.commit(buffer_of(1))
    second.commit(buffer_of(1))
    series = [first.attempt.series, second.attempt.series]
    assert [name for name, _ in second.segments()] == [f"seg-{one}-00000001" for one in series]


def test_a_late_segment_of_an_earlier_attempt_never_counts(tmp_path: Path):
    first = Job.claim(folder_in(tmp_path), MANIFEST)
    first.commit(buffer_of(0))
    second = Job.claim(folder_in(tmp_path), MANIFEST)
    # As on storage without locks: the check was before the claim, the write after it.
    late = tmp_path / f"seg-{first.attempt.series}-00000002"
    buffer_of(1).write(late)
    second.commit(buffer_of(2))
    third = Job.claim(folder_in(tmp_path), MANIFEST)
    assert list(third.pending()) == [1, 3, 4, 5]
    assert not late.exists()


def test_an_attempt_that_is_slow_to_begin_leaves_the_segments_of_a_later_one_alone(tmp_path: Path):
    folder = folder_in(tmp_path)
    slow = Job.claim(folder, MANIFEST)
    later = Job.claim(folder, replace(MANIFEST, epoch="another"))
    later.commit(buffer_of(0, 1))
    # As if it had claimed before and looked for segments only now.
    Job(folder, MANIFEST, slow.attempt)
    assert list(Job.claim(folder, later.manifest).pending()) == [2, 3, 4, 5]


def test_segments_of_another_epoch_never_count_and_tokens_only_rise(tmp_path: Path):
    folder = folder_in(tmp_path)
    old = Job.claim(folder, MANIFEST)
    old.commit(buffer_of(0, 1))
    new = Job.claim(folder, replace(MANIFEST, epoch="another"))
    assert (new.done, new.attempt.token, new.attempt.number) == (0, 2, 1)
    assert not list(tmp_path.glob(f"seg-{old.attempt.series}-*"))
    again = Job.claim(folder, new.manifest)
    assert (again.attempt.token, again.attempt.number) == (3, 2)


def test_an_attempt_whose_folder_was_removed_may_be_tried_again(tmp_path: Path):
    folder = folder_in(tmp_path / "parts")
    job = Job.claim(folder, MANIFEST)
    folder.remove_all()
    with pytest.raises(FolderRemoved, match="finished this batch meanwhile") as raised:
        job.commit(buffer_of(0))
    assert raised.value.retryable
    folder.create()
    with pytest.raises(FolderRemoved):
        job.check_token()
    Job.claim(folder, MANIFEST)
    with pytest.raises(Superseded) as superseded:
        job.check_token()
    assert not superseded.value.retryable


@pytest.mark.parametrize("torn", [1, 5, 40, 200])
def test_a_torn_segment_counts_as_absent(tmp_path: Path, torn: int):
    first = Job.claim(folder_in(tmp_path), MANIFEST)
    first.commit(buffer_of(0, 1))
    first.commit(buffer_of(2, 3))
    segment = min(tmp_path.glob("seg-*"))
    size = segment.stat().st_size
    with segment.open("r+b") as file:
        file.truncate(max(0, size - torn))
    assert list(Job.claim(folder_in(tmp_path), MANIFEST).pending()) == [0, 1, 4, 5]


def test_a_segment_whose_last_bytes_are_zeros_counts_as_absent(tmp_path: Path):
    Job.claim(folder_in(tmp_path), MANIFEST).commit(buffer_of(0, 1))
    segment = min(tmp_path.glob("seg-*"))
    data = segment.read_bytes()
    segment.write_bytes(data[:-16] + b"\0" * 16)
    assert list(Job.claim(folder_in(tmp_path), MANIFEST).pending()) == [0, 1, 2, 3, 4, 5]


def test_a_later_segment_wins_over_an_earlier_one(tmp_path: Path):
    Job.claim(folder_in(tmp_path), MANIFEST).commit(buffer_of(0, failed=True))
    Job.claim(folder_in(tmp_path), MANIFEST).commit(buffer_of(0))
    third = Job.claim(folder_in(tmp_path), MANIFEST)
    assert (third.counts.ok, third.counts.failed) == (1, 0)
