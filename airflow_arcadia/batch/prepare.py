"""Meet bad input before anything starts, and find out where an earlier attempt left off."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import orjson

from airflow_arcadia.batch.input.row_index import row_count, scan
from airflow_arcadia.batch.input.row_parser import Shape
from airflow_arcadia.batch.input.source import Input, locate
from airflow_arcadia.batch.output.job import INDEX, JOB, ROWS, Identity, Manifest, reopen
from airflow_arcadia.batch.output.paths import Place, place_of
from airflow_arcadia.batch.spec import NO_ROW_SENT, BatchSpec, BatchSummary
from airflow_arcadia.batch.storage import (
    Folder,
    LocalFolder,
    RemoteFolder,
    is_full,
)
from airflow_arcadia.exceptions import BatchError, BatchInputError


@dataclass(frozen=True)
class Finished:
    """The batch was done before.

    :param summary: what it returned then.
    """

    summary: BatchSummary
    manifest: Manifest


@dataclass(frozen=True)
class Ready:
    """The batch can run.

    :param manifest: of the job; its model is empty while unknown.
    :param rows: local file with the rows.
    :param index: where they start in it.
    """

    place: Place
    manifest: Manifest
    rows: Path
    index: Path


def check_input(spec: BatchSpec) -> int:
    """Prove input and output usable without an engine and without writing anything, and count the rows.

    Every row is read; one that cannot be sent becomes an error row later and is no error here. Raises
    :class:`BatchInputError`.
    """
    source, place = _look(spec)
    earlier = _earlier(spec, place, source)
    if isinstance(earlier, Finished):
        return earlier.summary.rows
    found = scan(source, None, None, spec)
    _compare(spec, place, found.digest, spec.model, earlier)
    return found.rows


def finished_summary(spec: BatchSpec) -> BatchSummary | None:
    """The summary of a batch that an earlier attempt finished, or None. Writes nothing.

    Raises :class:`BatchInputError` when the input or the output cannot be used.
    """
    source, place = locate(spec), place_of(spec)
    earlier = _earlier(spec, place, source)
    if not isinstance(earlier, Finished) or (spec.retry_failed_only and earlier.summary.failed):
        return None
    return earlier.summary


def prepare(spec: BatchSpec) -> Finished | Ready:
    """Check everything :func:`check_input` checks, and note where the rows are unless that is known."""
    source, place = _look(spec)
    earlier = _earlier(spec, place, source)
    if isinstance(earlier, Finished):
        if not (spec.retry_failed_only and earlier.summary.failed):
            if not spec.keep_segments:
                place.parts.remove_all()
            return earlier
        with _full_storage_said(place):
            earlier = _open_again(place, earlier)
    with _full_storage_said(place):
        if earlier is None:
            # What is there without a manifest is left from a batch that is finished.
            place.parts.remove_all()
        place.parts.create()
        _remove_leftovers(place.parts)
        if (
            earlier is None
            or not _same_scan(earlier, spec, source)
            or not _index_ready(place, source, earlier)
        ):
            return _scan_anew(spec, place, source, earlier)
    _compare(spec, place, earlier.digest, spec.model, earlier)
    return Ready(place, earlier, _rows_path(place, source), place.parts.fetch(INDEX))


def settle_model(spec: BatchSpec, ready: Ready, model: str) -> Manifest:
    """The job's manifest, once the model is known. Raises :class:`BatchInputError` where it changed."""
    manifest = ready.manifest
    identity = Identity.of(spec, manifest.digest, model)
    written = Manifest.read(ready.place.parts)
    if written is not None and written.identity != identity:
        _changed(spec, ready.place, written.identity.differences(identity))
        for name in ready.place.parts.names():
            if name not in {INDEX, ROWS}:
                ready.place.parts.remove(name)
        written = None
    settled = Manifest(identity, manifest.rows, manifest.digest, manifest.stamp, manifest.limit)
    if written is None:
        settled.write(ready.place.parts)
    return settled


def _look(spec: BatchSpec) -> tuple[Input, Place]:
    """What can be said without reading the rows."""
    Shape(spec, spec.model)
    source, place = locate(spec), place_of(spec)
    _check_writable(place)
    return source, place


def _open_again(place: Place, finished: Finished) -> Manifest:
    place.parts.remove_all()
    place.parts.create()
    output = place.folder.fetch(place.name)
    reopen(place.parts, finished.manifest, finished.summary, output)
    return finished.manifest


def _scan_anew(spec: BatchSpec, place: Place, source: Input, earlier: Manifest | None) -> Ready:
    parts = place.parts
    index = parts.work / f".tmp-{os.getpid()}-index"
    spool = None if source.local else parts.work / f".tmp-{os.getpid()}-rows"
    try:
        found = scan(source, index, spool, spec)
        _compare(spec, place, found.digest, spec.model, earlier)
        if spool is not None:
            # The copy stays on this machine: it is of no use to another.
            os.replace(spool, parts.work / ROWS)
        parts.publish(index, INDEX)
    except BatchInputError:
        if earlier is None and not parts.exists(JOB):
            parts.remove_all()
        raise
    finally:
        index.unlink(missing_ok=True)
        if spool is not None:
            spool.unlink(missing_ok=True)
    manifest = Manifest(
        Identity.of(spec, found.digest, spec.model), found.rows, found.digest, source.stamp, spec.limit
    )
    return Ready(place, manifest, _rows_path(place, source), parts.fetch(INDEX))


def _earlier(spec: BatchSpec, place: Place, source: Input) -> Manifest | Finished | None:
    """What an earlier attempt left: its result, its manifest, or nothing."""
    manifest = Manifest.read(place.parts)
    if manifest is not None or spec.overwrite or not place.folder.exists(place.name):
        return manifest
    finished = _read_summary(place)
    if finished is None:
        raise BatchInputError(
            f"The output {spec.output} exists and is not this batch's.",
            what_to_do="Choose another output, or set overwrite.",
            still_running=NO_ROW_SENT,
        )
    summary, written = finished
    digest = written.digest
    if not _same_scan(written, spec, source):
        digest = scan(source, None, None, spec).digest
    identity = Identity.of(spec, digest, spec.model)
    if different := written.identity.differences(identity):
        _changed(spec, place, different, finished=True)
        return None
    return Finished(summary, written)


def _compare(spec: BatchSpec, place: Place, digest: str, model: str, earlier: Manifest | None) -> None:
    if earlier is None:
        return
    different = earlier.identity.differences(Identity.of(spec, digest, model))
    if different:
        _changed(spec, place, different)


def _changed(spec: BatchSpec, place: Place, different: list[str], *, finished: bool = False) -> None:
    if spec.on_change == "restart" or (finished and spec.overwrite):
        return
    state = "was answered" if finished else "is partly answered"
    raise BatchInputError(
        f"The output {spec.output} {state} for another {', '.join(different)}.",
        what_to_do="Choose another output, or set on_change='restart' to begin again.",
        still_running=f"What was committed is kept in {place.folder.uri if finished else place.parts.uri}.",
    )


def _read_summary(place: Place) -> tuple[BatchSummary, Manifest] | None:
    try:
        raw: dict[str, Any] = orjson.loads(place.folder.read(place.summary))
        job = raw["job"]
        manifest = Manifest(**{**job, "identity": Identity(**job["identity"])})
        known = {field.name for field in fields(BatchSummary)}
        return BatchSummary(**{key: value for key, value in raw.items() if key in known}), manifest
    except (FileNotFoundError, KeyError, TypeError, ValueError):
        return None


def _same_scan(manifest: Manifest, spec: BatchSpec, source: Input) -> bool:
    return bool(source.stamp) and manifest.stamp == source.stamp and manifest.limit == spec.limit


def _index_ready(place: Place, source: Input, manifest: Manifest) -> bool:
    if not source.local and not (place.parts.work / ROWS).exists():
        return False
    try:
        return row_count(place.parts.fetch(INDEX)) == manifest.rows
    except FileNotFoundError:
        return False


def _rows_path(place: Place, source: Input) -> Path:
    return source.local or place.parts.work / ROWS


def _check_writable(place: Place) -> None:
    folder = place.folder
    if isinstance(folder, RemoteFolder) and (bucket := folder.missing_bucket()):
        raise BatchInputError(
            f"The output's bucket {bucket} does not exist.",
            what_to_do="Correct the output, or create the bucket.",
            still_running=NO_ROW_SENT,
        )
    if not isinstance(folder, LocalFolder):
        return
    existing = folder.path
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise BatchInputError(
            f"The output's folder {folder.path} cannot be written.",
            what_to_do="Choose another output, or correct the rights.",
            still_running=NO_ROW_SENT,
        )


def _remove_leftovers(parts: Folder) -> None:
    for path in parts.work.glob(".tmp-*"):
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _full_storage_said(place: Place) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        raise BatchError(
            f"The storage of {place.uri} is full.",
            what_to_do="Free space there and run the batch again.",
            still_running=NO_ROW_SENT,
        ) from error
