"""When a trigger fires: not before Airflow has noticed that its task deferred."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from airflow.triggers.base import TriggerEvent

from airflow_arcadia.triggers import settled
from airflow_arcadia.triggers.batch import ArcadiaBatchInferenceTrigger
from airflow_arcadia.triggers.settled import SETTLING_S, SettledTrigger
from airflow_arcadia.triggers.worker import ArcadiaModelReadyTrigger


class Clock:
    """Time that passes by sleeping alone."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


class Trigger(SettledTrigger):
    """One whose event is there after some seconds."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        super().__init__()
        self.clock, self.seconds = clock, seconds

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return "", {}

    async def wait(self) -> TriggerEvent:
        await self.clock.sleep(self.seconds)
        return TriggerEvent("done")


@pytest.mark.parametrize(("seconds", "fires_after"), [(0.0, SETTLING_S), (2.0, SETTLING_S), (60.0, 60.0)])
def test_a_trigger_takes_a_while_at_least_and_no_longer_than_what_it_waits_for(
    monkeypatch: pytest.MonkeyPatch, seconds: float, fires_after: float
):
    clock = Clock()
    monkeypatch.setattr(settled, "time", clock)
    monkeypatch.setattr(settled.asyncio, "sleep", clock.sleep)

    async def events() -> list[Any]:
        return [event.payload async for event in Trigger(clock, seconds).run()]

    assert asyncio.run(events()) == ["done"]
    assert clock.now - Clock.now == fires_after


def test_both_triggers_of_a_worker_do_so():
    for trigger in (ArcadiaBatchInferenceTrigger, ArcadiaModelReadyTrigger):
        assert issubclass(trigger, SettledTrigger)
        assert "run" not in vars(trigger)
