"""Claim the folder of a batch, once its model is known."""

from __future__ import annotations

from dataclasses import replace

from airflow_arcadia.batch.input.source import check_unchanged
from airflow_arcadia.batch.output.job import Job, current_manifest
from airflow_arcadia.batch.output.manifest import Identity, new_epoch
from airflow_arcadia.batch.prepare import Finished, Ready, refuse_change
from airflow_arcadia.batch.spec import NO_ROW_SENT, BatchSpec
from airflow_arcadia.exceptions import BatchError


def claim(spec: BatchSpec, ready: Ready, model: str) -> Job | Finished:
    """Claim the batch's folder, once the model is known.

    :return: the result instead when another attempt finished the batch meanwhile.

    Raises :class:`BatchInputError` where the model or, meanwhile, something else changed.
    """
    identity = Identity.of(spec, ready.manifest.digest, model)
    if finished := _finished_meanwhile(spec, ready, identity):
        return finished
    try:
        return _claim(spec, ready, identity)
    except FileNotFoundError as error:
        if finished := _finished_meanwhile(spec, ready, identity):
            return finished
        raise BatchError(
            f"The folder {ready.place.parts.uri} was removed while the batch began.",
            what_to_do="Run the batch again, and no other one on the same output.",
            still_running=NO_ROW_SENT,
        ) from error


def _finished_meanwhile(spec: BatchSpec, ready: Ready, identity: Identity) -> Finished | None:
    """The result of another attempt that finished the batch since :func:`prepare` looked."""
    place = ready.place
    finished = place.finished()
    if finished is None or finished[1].epoch == ready.replaces or not place.folder.exists(place.name):
        return None
    if different := finished[1].identity.differences(identity):
        refuse_change(spec, place, different, finished=True)
        return None
    return Finished(*finished)


def _claim(spec: BatchSpec, ready: Ready, identity: Identity) -> Job:
    place = ready.place
    written = current_manifest(place.parts)
    if written is not None and written.identity != identity:
        refuse_change(spec, place, written.identity.differences(identity))
        written = None
    epoch = written.epoch if written is not None else new_epoch()
    manifest = replace(ready.manifest, identity=identity, epoch=epoch)
    job = Job.claim(place.parts, manifest, lambda: check_unchanged(ready.source))
    if written is None:
        with place.parts.locked():
            job.check_token()
            manifest.write(place.parts)
    return job
