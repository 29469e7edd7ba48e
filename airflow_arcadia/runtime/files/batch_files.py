"""The files of one batch whose rows were uploaded: where it runs, and what becomes of its results."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator

from airflow_arcadia.batch import BatchSpec
from airflow_arcadia.batch.results import read_committed, write_results
from airflow_arcadia.runtime.batch_record import Batch, FileIds
from airflow_arcadia.runtime.files.store import BATCH_OUTPUT, FileStore, StoredFile

UNSENT = {
    "expired": ("batch_expired", "The batch's completion window was over before this row was answered."),
    "cancelled": ("batch_cancelled", "The batch was cancelled before this row was answered."),
}
"""Status of an ended batch → code and message of its error rows for what was not done."""
_OUTPUT = "output.jsonl"


class BatchFiles:
    """See the module. What blocks says so.

    :param store: the worker's files.
    """

    def __init__(self, store: FileStore) -> None:
        self._store = store
        self._readers: dict[str, int] = {}
        """Id of a batch → how many clients read what it has committed."""

    def spec(self, batch_id: str, upload: str, asked: BatchSpec) -> dict[str, object]:
        """Fields of the spec that runs the batch: the segments are kept until :meth:`clean`. Blocks.

        However many rows fail, the batch is completed unless the client says otherwise: to OpenAI's clients a
        batch that failed is one of which no row was answered.
        """
        folder = self._store.work_folder(batch_id)
        folder.mkdir(mode=0o700, exist_ok=True)
        where = {"input": str(self._store.path(upload)), "output": str(folder / _OUTPUT)}
        fields = {**asked.to_dict(), **where, "keep_segments": True}
        if asked.max_failed_rows is None and asked.max_failed_fraction is None:
            fields["max_failed_fraction"] = 1.0
        return fields

    def unfinished(self, batch: Batch) -> list[StoredFile]:
        """The files that a running batch is writing; none once they are in the store. Their size is 0."""
        if batch.files is None or batch.has_ended or batch.in_progress_at is None:
            return []
        expires_at = int(batch.in_progress_at + self._store.limits.lifetime_s)
        return [
            StoredFile(file_id, _filename(batch, what), 0, batch.in_progress_at, expires_at, BATCH_OUTPUT)
            for what, file_id in (("output", batch.files.output), ("error", batch.files.error))
        ]

    @contextlib.contextmanager
    def reading(self, batch: Batch, file_id: str) -> Iterator[Iterator[bytes]]:
        """The lines that are committed so far of one of a running batch's files.

        Reading them blocks. What the batch has committed stays there until the block is left.
        """
        assert batch.files is not None  # noqa: S101 - for the type checker
        self._readers[batch.id] = self._readers.get(batch.id, 0) + 1
        try:
            yield read_committed(BatchSpec(**batch.spec), failed=file_id == batch.files.error)
        finally:
            self._readers[batch.id] -= 1
            if not self._readers[batch.id]:
                del self._readers[batch.id]

    def publish(self, batch: Batch, files: FileIds, status: str) -> tuple[int, int]:
        """Put what the ended batch has into the store: answers and error rows, in input order. Blocks.

        Idempotent until :meth:`clean`.

        :param status: as which it ends.
        :return: how many answers and how many error rows there are.
        """
        folder = self._store.work_folder(batch.id)
        answers, errors = folder / "answers.jsonl", folder / "errors.jsonl"
        found = write_results(BatchSpec(**batch.spec), answers, errors, UNSENT.get(status))
        written = ((answers, files.output, "output"), (errors, files.error, "error"))
        for count, (path, file_id, what) in zip(found, written, strict=True):
            if count:
                name = _filename(batch, what)
                self._store.adopt(path, name, BATCH_OUTPUT, file_id=file_id, life_s=files.life_s)
        return found

    def clean(self, batch: Batch) -> None:
        """Remove what an ended batch wrote while it ran, unless a client still reads it. Blocks."""
        if batch.id not in self._readers:
            shutil.rmtree(self._store.work_folder(batch.id), ignore_errors=True)


def _filename(batch: Batch, what: str) -> str:
    return f"{batch.id}_{what}.jsonl"
