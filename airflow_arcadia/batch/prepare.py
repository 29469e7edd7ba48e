"""Validate a batch before anything starts, and find the state that an earlier attempt left."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from airflow_arcadia.batch.input.row_index import Scan, row_count, scan
from airflow_arcadia.batch.input.source import Input, locate
from airflow_arcadia.batch.output.job import current_manifest, reopen
from airflow_arcadia.batch.output.manifest import Identity, Manifest, new_epoch
from airflow_arcadia.batch.output.paths import Place, place_of
from airflow_arcadia.batch.spec import NO_ROW_SENT, BatchSpec, BatchSummary
from airflow_arcadia.batch.storage import (
    explained,
    full_storage,
    is_full,
    remove_leftovers,
    shown,
    temporary_path,
)
from airflow_arcadia.exceptions import BatchError, BatchInputError

log = logging.getLogger(__name__)

_RACES = 3
"""How often to look again when another attempt removes the folder meanwhile."""


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
    :param replaces: epoch of the finished batch whose output this one is to replace; None without one.
    """

    place: Place
    source: Input
    manifest: Manifest
    rows: Path
    index: Path
    replaces: str | None = None


def check_input(spec: BatchSpec) -> int:
    """Validate input and output without an engine, and count the rows.

    Every row is read, and the first ones are made into requests; one that cannot be sent becomes an error
    row later and is not an error here unless none of the first can be. Nothing is left behind.

    Raises :class:`BatchInputError`, and :class:`BatchError` for a storage that cannot be reached.
    """
    with explained(f"The output {shown(spec.output)}", NO_ROW_SENT):
        source, place = _locate(spec)
        earlier = _earlier(spec, place, source)
        if isinstance(earlier, Finished):
            return earlier.summary.rows
        place.folder.check_usable()
        found = scan(source, None, None, spec)
        _log_duplicates(spec, found)
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
    """Validate as :func:`check_input` does, and index the rows unless an earlier attempt did."""
    with explained(f"The output {shown(spec.output)}", NO_ROW_SENT):
        for _ in range(_RACES - 1):
            # Another attempt may finish the batch, and remove the folder, at any moment.
            with contextlib.suppress(FileNotFoundError):
                return _prepare(spec)
        return _prepare(spec)


def _prepare(spec: BatchSpec) -> Finished | Ready:
    source, place = _locate(spec)
    earlier = _earlier(spec, place, source)
    if isinstance(earlier, Finished) and not (spec.retry_failed_only and earlier.summary.failed):
        if not spec.keep_segments:
            place.parts.remove_all()
        return earlier
    finished = place.finished()
    replaces = finished[1].epoch if finished is not None else None
    place.folder.check_usable()
    with _full_storage_explained(place):
        place.parts.create()
        remove_leftovers(place.parts)
        if isinstance(earlier, Finished):
            earlier = _open_again(place, earlier)
        if (
            earlier is None
            or not _same_scan(earlier, spec, source)
            or not _index_ready(place, source, earlier)
        ):
            manifest = _scan(spec, place, source, earlier)
        else:
            manifest = earlier
            _compare(spec, place, manifest.digest, spec.model, earlier)
    rows = source.local or place.parts.work / manifest.copy
    return Ready(place, source, manifest, rows, place.parts.fetch(manifest.index), replaces)


def _locate(spec: BatchSpec) -> tuple[Input, Place]:
    with explained(f"The input {shown(spec.input)}", NO_ROW_SENT):
        source = locate(spec)
    return source, place_of(spec)


def _open_again(place: Place, finished: Finished) -> Manifest:
    manifest = replace(finished.manifest, epoch=new_epoch())
    reopen(place.parts, manifest, finished.summary, place.folder.fetch(place.name))
    return manifest


def _scan(spec: BatchSpec, place: Place, source: Input, earlier: Manifest | None) -> Manifest:
    parts = place.parts
    index = temporary_path(parts, "index")
    copy = None if source.local else temporary_path(parts, "rows")
    try:
        found = scan(source, index, copy, spec)
        _log_duplicates(spec, found)
        _compare(spec, place, found.digest, spec.model, earlier)
        identity = Identity.of(spec, found.digest, spec.model)
        manifest = Manifest(identity, found.rows, found.digest, source.stamp, spec.limit)
        if copy is not None:
            # The copy stays on this machine: another one makes its own.
            os.replace(copy, parts.work / manifest.copy)
        parts.publish(index, manifest.index)
    except BatchInputError:
        if earlier is None and not parts.sizes():
            parts.remove_all()
        raise
    finally:
        index.unlink(missing_ok=True)
        if copy is not None:
            copy.unlink(missing_ok=True)
    return manifest


def _earlier(spec: BatchSpec, place: Place, source: Input) -> Manifest | Finished | None:
    """The result or the manifest that an earlier attempt left; None without one."""
    manifest = current_manifest(place.parts)
    if manifest is not None or spec.overwrite:
        return manifest
    finished = place.finished()
    if finished is None:
        _refuse_foreign_files(spec, place)
        return None
    if not place.folder.exists(place.name):
        return None
    summary, written = finished
    digest = written.digest
    if not _same_scan(written, spec, source):
        digest = scan(source, None, None, spec).digest
    identity = Identity.of(spec, digest, spec.model)
    if different := written.identity.differences(identity):
        refuse_change(spec, place, different, finished=True)
        return None
    return Finished(summary, written)


def _refuse_foreign_files(spec: BatchSpec, place: Place) -> None:
    for name in (place.name, place.errors, place.summary):
        if place.folder.exists(name):
            raise BatchInputError(
                f"{'The output ' if name == place.name else 'Beside the output, '}"
                f"{place.uri.removesuffix(place.name)}{name} exists and is not this batch's.",
                what_to_do="Choose another output, or set overwrite.",
                still_running=NO_ROW_SENT,
            )


def _compare(spec: BatchSpec, place: Place, digest: str, model: str, earlier: Manifest | None) -> None:
    if earlier is None:
        return
    different = earlier.identity.differences(Identity.of(spec, digest, model))
    if different:
        refuse_change(spec, place, different)


def refuse_change(spec: BatchSpec, place: Place, different: list[str], *, finished: bool = False) -> None:
    """Raise :class:`BatchInputError` unless the spec allows to replace what another job wrote."""
    if spec.on_change == "restart" or spec.overwrite:
        return
    state = "was answered" if finished else "is partly answered"
    raise BatchInputError(
        f"The output {place.uri} {state} for another {', '.join(different)}.",
        what_to_do="Choose another output, or set on_change='restart' to start over.",
        still_running=f"Committed rows are kept in {place.folder.uri if finished else place.parts.uri}.",
    )


def _same_scan(manifest: Manifest, spec: BatchSpec, source: Input) -> bool:
    return bool(source.stamp) and manifest.stamp == source.stamp and manifest.limit == spec.limit


def _index_ready(place: Place, source: Input, manifest: Manifest) -> bool:
    if not source.local and not (place.parts.work / manifest.copy).exists():
        return False
    try:
        return row_count(place.parts.fetch(manifest.index)) == manifest.rows
    except FileNotFoundError:
        return False


def _log_duplicates(spec: BatchSpec, found: Scan) -> None:
    if found.duplicate_ids:
        log.warning(
            "%s: %d rows repeat the custom_id of an earlier row; each is answered, and only the output's "
            "order distinguishes them",
            shown(spec.input),
            found.duplicate_ids,
        )


@contextlib.contextmanager
def _full_storage_explained(place: Place) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        raise BatchError(
            f"{full_storage(place.parts, error)} is full.",
            what_to_do="Free space there and run the batch again.",
            still_running=NO_ROW_SENT,
        ) from error
