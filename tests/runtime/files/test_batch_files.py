"""What a batch has written stays while a client reads it."""

from pathlib import Path

import pytest

from airflow_arcadia.batch import BatchSpec
from airflow_arcadia.runtime.batch_record import Batch, FileIds
from airflow_arcadia.runtime.files.batch_files import BatchFiles
from airflow_arcadia.runtime.files.store import FileStore, Limits


def test_an_ended_batchs_folder_is_removed_once_nobody_reads_it(tmp_path: Path):
    store = FileStore(tmp_path / "files", Limits(100, 1000, 1000))
    files = BatchFiles(store)
    store.path("file-in").write_text('{"prompt": "a"}\n')
    spec = files.spec("batch_1", "file-in", BatchSpec("file-in", "out", "tiny"))
    ids = FileIds("file-in", "file-out", "file-err")
    batch = Batch("batch_1", "/v1/completions", spec, None, 0, files=ids)
    with files.reading(batch, "file-out") as lines:
        files.clean(batch)
        assert list(lines) == []
        assert store.work_folder("batch_1").exists()
    with pytest.raises(ConnectionError), files.reading(batch, "file-out"):
        raise ConnectionError
    files.clean(batch)
    assert not store.work_folder("batch_1").exists()
