"""Merge several watches into one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from airflow_arcadia.kubernetes.kinds import Object


async def together(
    *streams: AsyncGenerator[list[Object] | None, None], every_s: float
) -> AsyncGenerator[Sequence[list[Object] | None], None]:
    """The latest result of each stream, once each has one: after every change, and every ``every_s`` s.

    Raises what one of them raises.

    :param every_s: longest pause in seconds; for decisions that time alone changes.
    """
    last: list[Any] = [None] * len(streams)
    heard = [False] * len(streams)
    coming = [asyncio.ensure_future(anext(stream)) for stream in streams]
    try:
        while True:
            done, _ = await asyncio.wait(coming, timeout=every_s, return_when=asyncio.FIRST_COMPLETED)
            for index, future in enumerate(coming):
                if future in done:
                    last[index], heard[index] = future.result(), True
                    coming[index] = asyncio.ensure_future(anext(streams[index]))
            if all(heard):
                yield tuple(last)
    finally:
        for future in coming:
            future.cancel()
        await asyncio.gather(*coming, return_exceptions=True)
        for stream in streams:
            await stream.aclose()
