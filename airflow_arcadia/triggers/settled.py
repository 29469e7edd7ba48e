"""Keep a trigger from firing before Airflow has noticed that its task deferred.

The executor reports the end of the process that deferred with a delay, of seconds on a busy machine. If the
task has resumed by then, the scheduler of Airflow up to 3.3 mistakes the report for the end of the resumed
task, and fails it (https://github.com/apache/airflow/issues/72716).
"""

from __future__ import annotations

import asyncio
import time
from abc import abstractmethod
from collections.abc import AsyncIterator

from airflow.triggers.base import BaseTrigger, TriggerEvent

SETTLING_S = 5.0
"""How long a trigger takes at least."""


class SettledTrigger(BaseTrigger):
    """A trigger with one event, fired :data:`SETTLING_S` after its start or later."""

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait until there is something to say."""
        began = time.monotonic()
        event = await self.wait()
        await asyncio.sleep(max(0.0, began + SETTLING_S - time.monotonic()))
        yield event

    @abstractmethod
    async def wait(self) -> TriggerEvent:
        """The event, once there is one."""
