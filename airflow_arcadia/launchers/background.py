"""Coroutines that run beside blocking code, in a thread of their own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from types import TracebackType
from typing import Any, TypeVar

Self = TypeVar("Self", bound="Background")


class Background:
    """Runs coroutines in one thread until it is stopped, as a context manager. It ends with the process.

    :param name: of the thread.
    :param works: each makes one coroutine. They must handle their own errors: none of them ends the others.
    """

    def __init__(self, name: str, works: Sequence[Callable[[], Coroutine[Any, Any, None]]]) -> None:
        self._works = works
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._end: asyncio.Event | None = None

    def start(self) -> None:
        """Start the coroutines."""
        self._thread.start()
        self._started.wait()

    def stop(self) -> None:
        """Cancel them and wait until they have ended."""
        if self._loop is not None and self._end is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()

    def __enter__(self: Self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _run(self) -> None:
        asyncio.run(self._main())

    async def _main(self) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        running = [asyncio.ensure_future(work()) for work in self._works]
        self._started.set()
        await self._end.wait()
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
