"""The files of a worker's clients on disk: limits, expiry, and what a killed process leaves."""

import stat
from pathlib import Path

import pytest

from airflow_arcadia.runtime.files.store import (
    BATCH,
    BATCH_OUTPUT,
    FileRefused,
    FileStore,
    Limits,
    StoredFile,
    plain_name,
)

LIMITS = Limits(file_bytes=100, total_bytes=250, lifetime_s=1000)


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def opened(tmp_path: Path, clock: Clock, limits: Limits = LIMITS) -> FileStore:
    return FileStore(tmp_path / "files", limits, clock=clock)


@pytest.fixture
def files(tmp_path: Path, clock: Clock) -> FileStore:
    return opened(tmp_path, clock)


def put(files: FileStore, content: bytes = b"rows", life: float | None = None) -> StoredFile:
    draft = files.begin()
    try:
        draft.write(content)
        return draft.finish("a.jsonl", BATCH, life)
    finally:
        draft.close()


def test_a_file_is_kept_with_what_its_client_said_of_it(files: FileStore, clock: Clock, tmp_path: Path):
    file = put(files)
    assert file.to_openai() == {
        "id": file.id,
        "object": "file",
        "filename": "a.jsonl",
        "bytes": 4,
        "created_at": 1_000_000,
        "expires_at": 1_001_000,
        "purpose": "batch",
        "status": "processed",
        "status_details": None,
    }
    assert files.path(file.id).read_bytes() == b"rows"
    again = opened(tmp_path, clock)
    assert again.find(file.id) == file
    assert [one.id for one in again.list()] == [file.id]


def test_only_the_workers_user_can_read_files(files: FileStore):
    path = files.path(put(files).id)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_ids_cannot_be_guessed(files: FileStore):
    ids = {put(files, b"x").id for _ in range(50)}
    assert len(ids) == 50
    assert all(len(one) == len("file-") + 32 for one in ids)


def test_a_removed_file_is_gone_from_the_disk(files: FileStore, tmp_path: Path):
    file = put(files)
    files.remove(file.id)
    files.remove(file.id)
    assert files.find(file.id) is None
    assert list((tmp_path / "files").iterdir()) == []


def test_a_file_that_is_too_large_leaves_nothing_behind(files: FileStore, tmp_path: Path):
    with pytest.raises(FileRefused, match="at most 100 bytes"):
        put(files, b"x" * 101)
    assert list((tmp_path / "files").iterdir()) == []
    put(files, b"x" * 100)


def test_all_files_together_are_limited_and_so_are_those_being_written(files: FileStore):
    first = put(files, b"x" * 100)
    put(files, b"x" * 100)
    draft = files.begin()
    draft.write(b"x" * 40)
    with pytest.raises(FileRefused, match="Delete files"):
        put(files, b"x" * 20)
    draft.close()
    put(files, b"x" * 20)
    files.remove(first.id)
    put(files, b"x" * 100)


def test_what_running_batches_write_counts(tmp_path: Path, clock: Clock, files: FileStore):
    folder = files.work_folder("batch_1")
    folder.mkdir()
    (folder / "seg").write_bytes(b"x" * 240)
    assert not files.has_space(20)
    with pytest.raises(FileRefused):
        put(files, b"x" * 20)


def test_files_expire_unless_a_batch_reads_them(files: FileStore, clock: Clock):
    soon, late = put(files, life=10), put(files, life=5000)
    clock.now += 10
    assert files.find(soon.id) is None
    files.in_use = lambda file_id: file_id == soon.id
    files.remove_expired()
    assert files.path(soon.id).exists()
    files.in_use = lambda _: False
    files.remove_expired()
    assert not files.path(soon.id).exists()
    clock.now += 989
    assert files.find(late.id) is not None
    clock.now += 1
    assert files.list() == []


def test_an_expired_file_that_cannot_be_removed_keeps_neither_the_others_nor_an_upload_waiting(
    files: FileStore, clock: Clock
):
    stuck, other = put(files, life=10), put(files, life=10)
    files.path(stuck.id).unlink()
    files.path(stuck.id).mkdir()  # a folder cannot be unlinked, by root neither
    clock.now += 10
    files.remove_expired()
    assert not files.path(other.id).exists()
    assert put(files).bytes == 4
    files.path(stuck.id).rmdir()
    files.remove_expired()
    assert not files.path(stuck.id).with_name(f"{stuck.id}.json").exists()


def test_what_a_killed_process_left_unfinished_is_removed(tmp_path: Path, clock: Clock):
    files = opened(tmp_path, clock)
    whole = put(files)
    files.begin().write(b"half")
    lost = put(files)
    (tmp_path / "files" / f"{lost.id}.json").unlink()
    (tmp_path / "files" / "file-x.json").write_text("{")
    (tmp_path / "files" / "batch_over").mkdir()
    (tmp_path / "files" / "batch_runs").mkdir()
    again = opened(tmp_path, clock)
    again.remove_work_folders(lambda name: name == "batch_runs")
    assert [file.id for file in again.list()] == [whole.id]
    names = sorted(path.name for path in (tmp_path / "files").iterdir())
    assert names == sorted([whole.id, f"{whole.id}.json", "batch_runs"])


def test_the_record_of_another_name_is_not_believed(tmp_path: Path, clock: Clock):
    files = opened(tmp_path, clock)
    file = put(files)
    record = (tmp_path / "files" / f"{file.id}.json").read_text()
    (tmp_path / "secret").write_text("secret")
    evil = record.replace(file.id, "../secret")
    (tmp_path / "files" / "file-00.json").write_text(evil)
    assert [one.id for one in opened(tmp_path, clock).list()] == [file.id]
    assert (tmp_path / "secret").exists()


def test_a_batchs_output_is_adopted_under_its_id(files: FileStore, tmp_path: Path):
    files.begin().close()
    done = tmp_path / "files" / "answers"
    done.write_bytes(b"1\n2\n")
    file_id = f"file-{'0' * 32}"
    adopted = files.adopt(done, "out.jsonl", BATCH_OUTPUT, file_id=file_id, life_s=20)
    assert (adopted.id, adopted.bytes, adopted.expires_at) == (file_id, 4, 1_000_020)
    assert files.path(file_id).read_bytes() == b"1\n2\n"


def test_without_a_folder_files_go_with_the_process(clock: Clock):
    files = FileStore(None, LIMITS, clock=clock)
    path = files.path(put(files).id)
    assert path.exists()
    files.close()
    assert not path.parent.exists()


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("a.jsonl", "a.jsonl"),
        ("../../etc/passwd", "passwd"),
        ("C:\\rows\\a.jsonl", "a.jsonl"),
        ("a\r\nSet-Cookie: b\x00", "aSet-Cookie: b"),
        ("", "upload"),
        ("x" * 300, "x" * 255),
    ],
)
def test_a_clients_name_of_a_file_is_only_text(given: str, kept: str):
    assert plain_name(given) == kept
