"""Limits on the body of a request: its size, and how long its client may take to send it."""

from __future__ import annotations

import asyncio
import contextlib

from airflow_arcadia.runtime.asgi import Message, Receive, Scope, header

MAX_BODY_BYTES = 128 * 2**20
"""Twice the longest row of a batch."""
BODY_TIMEOUT_S = 60.0
"""Seconds between two parts of a body."""


class RequestRefused(Exception):
    """The request is not answered further.

    :param status: the HTTP status that says so.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def check_length(scope: Scope, limit: int = MAX_BODY_BYTES) -> None:
    """Raise :class:`RequestRefused` for a request that announces a longer body."""
    with contextlib.suppress(ValueError):
        if int(header(scope, b"content-length") or b"0") > limit:
            raise _too_long(limit)


def limited(receive: Receive, limit: int = MAX_BODY_BYTES, timeout_s: float = BODY_TIMEOUT_S) -> Receive:
    """``receive``, raising :class:`RequestRefused` for a body that is too long or comes too slowly.

    :param limit: bytes.
    """
    read, whole = 0, False

    async def checked() -> Message:
        nonlocal read, whole
        if whole:
            return await receive()
        try:
            async with asyncio.timeout(timeout_s):
                message = await receive()
        except TimeoutError as error:
            raise RequestRefused(408, f"No part of the body came for {timeout_s:g} s.") from error
        read += len(message.get("body") or b"")
        whole = message["type"] != "http.request" or not message.get("more_body")
        if read > limit:
            raise _too_long(limit)
        return message

    return checked


def _too_long(limit: int) -> RequestRefused:
    return RequestRefused(413, f"The body has more than {limit} bytes.")
