"""One batch as the worker records it beside its lease, and as OpenAI's API shows it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from airflow_arcadia.runtime.log import say

ENDED = frozenset({"completed", "failed", "cancelled", "expired"})


@dataclasses.dataclass
class FileIds:
    """The files of a batch whose rows were uploaded.

    :param input: id of the upload.
    :param output: id under which the answers are, ``error`` that under which the error rows are.
    :param life_s: seconds after which both are removed; None leaves that to the worker.
    """

    input: str
    output: str
    error: str
    life_s: float | None = None


@dataclasses.dataclass
class Batch:
    """One batch, as it is recorded. Times are seconds since the epoch.

    :param spec: fields of the :class:`~airflow_arcadia.batch.BatchSpec`.
    :param status: OpenAI's: ``validating``, ``in_progress``, ``finalizing``, ``cancelling``, and those in
        :data:`ENDED`.
    :param progress: the last :class:`~airflow_arcadia.batch.Progress`.
    :param summary: the :class:`~airflow_arcadia.batch.BatchSummary` once completed.
    :param error: why it failed.
    :param trusted: whether one of the run's own tasks asked for it.
    :param window: OpenAI's ``completion_window``, as it was asked for.
    :param files: of a batch whose rows were uploaded; None where its spec names URIs.
    :param submission: of the last client that submitted it and said so.
    :param results: how many answers and how many error rows these files have, once they are finished.
    """

    id: str
    endpoint: str
    spec: dict[str, Any]
    metadata: dict[str, str] | None
    created_at: int
    status: str = "validating"
    ended_at: int | None = None
    progress: dict[str, Any] | None = None
    summary: dict[str, Any] | None = None
    error: str | None = None
    trusted: bool = False
    window: str | None = None
    expires_at: int | None = None
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    cancelling_at: int | None = None
    files: FileIds | None = None
    results: tuple[int, int] | None = None
    submission: str | None = None

    @property
    def has_ended(self) -> bool:
        """Whether it is over."""
        return self.status in ENDED

    def to_openai(self) -> dict[str, Any]:
        """OpenAI's Batch object, with ``progress`` and ``summary`` beside its own fields."""
        counts = self.summary or self.progress or {}
        output, error = self._output_ids()
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": self.endpoint,
            "model": self.spec["model"],
            "errors": _errors(self.error),
            "input_file_id": self.files.input if self.files else self.spec["input"],
            "completion_window": self.window or "24h",
            "status": self.status,
            "output_file_id": output,
            "error_file_id": error,
            "created_at": self.created_at,
            "in_progress_at": self.in_progress_at,
            "expires_at": self.expires_at,
            "finalizing_at": self.finalizing_at,
            "completed_at": self._ended_as("completed"),
            "failed_at": self._ended_as("failed"),
            "expired_at": self._ended_as("expired"),
            "cancelling_at": self.cancelling_at,
            "cancelled_at": self._ended_as("cancelled"),
            "request_counts": {
                "total": counts.get("rows", counts.get("total", 0)),
                "completed": counts.get("ok", 0),
                "failed": counts.get("failed", 0),
            },
            "usage": _usage(self.summary),
            "metadata": self.metadata,
            "progress": self.progress,
            "summary": None if self.files else self.summary,
        }

    def write(self, folder: Path) -> None:
        """Record it in the folder, whole or not at all."""
        path = folder / f"{self.id}.json"
        draft = path.with_suffix(".tmp")
        # The lease's folder is gone when the worker is being torn down: then nobody will continue it.
        with contextlib.suppress(FileNotFoundError):
            draft.write_text(json.dumps(dataclasses.asdict(self)), encoding="utf-8")
            draft.replace(path)

    def _ended_as(self, status: str) -> int | None:
        return self.ended_at if self.status == status else None

    def _output_ids(self) -> tuple[str | None, str | None]:
        """What the answers and the error rows can be fetched by."""
        if self.files is None:
            output = self.spec["output"] if self.status == "completed" else None
            return output, (self.summary or {}).get("errors")
        if self.results is not None:
            answered, failed = self.results
            return (self.files.output if answered else None), (self.files.error if failed else None)
        if self.has_ended or self.in_progress_at is None:
            return None, None
        # What is committed can be read while it runs.
        return self.files.output, (self.files.error if (self.progress or {}).get("failed") else None)


def read_batches(folder: Path | None) -> Iterator[Batch]:
    """The batches recorded in the folder."""
    for path in folder.glob("batch_*.json") if folder else ():
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            files = FileIds(**raw["files"]) if raw.get("files") else None
            results = tuple(raw["results"]) if raw.get("results") else None
            yield Batch(**{**raw, "files": files, "results": results})
        except (OSError, ValueError, TypeError) as error:
            say(f"{path.name} is not the record of a batch and is left alone: {error}")


def _errors(error: str | None) -> dict[str, Any] | None:
    if error is None:
        return None
    problem = {"code": "batch_failed", "message": error, "param": None, "line": None}
    return {"object": "list", "data": [problem]}


def _usage(summary: dict[str, Any] | None) -> dict[str, Any] | None:
    """OpenAI's usage. Its details are not counted: clients insist on them, and get zeros."""
    if summary is None:
        return None
    read, written = summary["prompt_tokens"], summary["completion_tokens"]
    return {
        "input_tokens": read,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": written,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": read + written,
    }
