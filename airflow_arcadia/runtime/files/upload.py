"""Take an upload to the disk as it comes, in bounded memory."""

from __future__ import annotations

import asyncio

from airflow_arcadia.runtime.asgi import ClientLeft, Receive, Scope, header
from airflow_arcadia.runtime.files.form import FormError, UploadForm
from airflow_arcadia.runtime.files.store import (
    BATCH,
    LONGEST_LIFE_S,
    SHORTEST_LIFE_S,
    Draft,
    FileStore,
    StoredFile,
)

_BLOCK = 2**20
"""Bytes that are collected before they are written, by a thread: the disk must not hold up the server."""


async def receive_file(store: FileStore, scope: Scope, receive: Receive) -> StoredFile:
    """Store the file of a request.

    Raises :class:`FormError` for a form that is not right, :class:`~.store.FileRefused` where there is no
    space, and :class:`~airflow_arcadia.runtime.asgi.ClientLeft`.
    """
    form = UploadForm(header(scope, b"content-type"))
    draft = await asyncio.to_thread(store.begin)
    try:
        waiting = bytearray()
        more = True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                raise ClientLeft
            waiting += form.feed(message.get("body") or b"")
            more = bool(message.get("more_body"))
            if len(waiting) >= _BLOCK or not more:
                await asyncio.to_thread(draft.write, bytes(waiting))
                waiting.clear()
        form.finish()
        return await _finish(draft, form)
    finally:
        await asyncio.to_thread(draft.close)


async def _finish(draft: Draft, form: UploadForm) -> StoredFile:
    purpose = form.fields.get("purpose")
    if purpose != BATCH:
        raise FormError(f"purpose must be {BATCH!r}: this worker stores files for batches alone.")
    if not draft.size:
        raise FormError("The file is empty.")
    life = _life(form.fields)
    return await asyncio.to_thread(draft.finish, form.filename or "", purpose, life)


def _life(fields: dict[str, str]) -> float | None:
    """What ``expires_after`` of the form says, in seconds."""
    anchor, seconds = fields.get("expires_after[anchor]"), fields.get("expires_after[seconds]")
    if anchor is None and seconds is None:
        return None
    return lifetime(anchor, int(seconds) if seconds is not None and seconds.isdecimal() else None)


def lifetime(anchor: object, seconds: object) -> float:
    """The seconds of OpenAI's ``expires_after``. Raises :class:`FormError` for any other."""
    if anchor != "created_at":
        raise FormError("The anchor of expires_after must be 'created_at'.")
    if type(seconds) is not int or not SHORTEST_LIFE_S <= seconds <= LONGEST_LIFE_S:
        raise FormError(
            f"The seconds of expires_after must be a number from {SHORTEST_LIFE_S} to {LONGEST_LIFE_S}."
        )
    return float(seconds)
