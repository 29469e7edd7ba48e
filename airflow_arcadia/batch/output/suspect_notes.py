"""The suspects of a batch in its folder, so that the next attempt does not begin the search again.

A row that kills the engine often ends the attempt with it: with the only worker.
"""

from __future__ import annotations

import asyncio
import logging

import orjson

from airflow_arcadia.batch.output.job import Job
from airflow_arcadia.batch.storage import write
from airflow_arcadia.batch.suspects import Suspects

log = logging.getLogger(__name__)

SUSPECTS = "suspects.json"


def read_suspects(job: Job) -> Suspects:
    """The suspects that earlier attempts of this job left, as far as their rows are still to do."""
    suspects = Suspects()
    try:
        raw = orjson.loads(job.folder.read(SUSPECTS))
        if raw["job"] == job.manifest.identity.fingerprint:
            numbers = {number for group in raw["groups"] for number in group}
            suspects.load(raw, [number for number in numbers if not job.states[number]])
    except FileNotFoundError:
        pass
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        # They only save time: without them the search begins again.
        log.warning("The suspects in %s cannot be read: %r", job.folder.uri, error)
    return suspects


class SuspectNotes:
    """Writes the suspects down whenever they changed, one write at a time."""

    def __init__(self, job: Job, suspects: Suspects) -> None:
        self._job, self._suspects = job, suspects
        self._changed = asyncio.Event()

    def changed(self) -> None:
        """Have them written down."""
        self._changed.set()

    async def keep(self) -> None:
        """Write until cancelled."""
        while True:
            await self._changed.wait()
            await self.write()

    async def write(self) -> None:
        """Write them down now if they changed."""
        if self._changed.is_set():
            self._changed.clear()
            raw = {"job": self._job.manifest.identity.fingerprint, **self._suspects.to_dict()}
            try:
                await asyncio.to_thread(write, self._job.folder, SUSPECTS, orjson.dumps(raw))
            except Exception as error:  # noqa: BLE001 - they only save time
                log.warning("The suspects could not be written down: %r", error)
