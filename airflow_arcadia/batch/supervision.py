"""Background tasks whose errors are never lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any


def supervised(
    work: Coroutine[Any, Any, None], failed: Callable[[BaseException], None]
) -> asyncio.Task[None]:
    """Run the coroutine as a task, and hand over the exception that ends it; a cancellation is none."""

    def look(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            failed(error)

    task = asyncio.get_running_loop().create_task(work)
    task.add_done_callback(look)
    return task


async def end_tasks(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancel tasks and wait for their end. Their errors are for whoever supervises them.

    Cancelled again until they are done: before Python 3.12 ``asyncio.wait_for`` loses a cancellation that
    comes in the moment its own task is done.
    """
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        done, pending = await asyncio.wait(pending, timeout=1.0)
        for task in done:
            if not task.cancelled():
                task.exception()
