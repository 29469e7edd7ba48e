"""A lease that does not end keeps no other waiting."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator

import pytest

from airflow_arcadia.exceptions import ArcadiaError
from airflow_arcadia.launchers.ends_aside import EndsAside
from airflow_arcadia.launchers.reaper import Held
from tests.conftest import wait_for
from tests.launchers.test_reaper import FakeBackend, held, named


class SlowBackend(FakeBackend):
    """The end of the lease ``stuck`` takes until ``gone`` is set."""

    gone = threading.Event()

    def end(self, held: Held, *, grace_s: float) -> list[str]:
        if held.name == "stuck":
            assert self.gone.wait(30)
        return super().end(held, grace_s=grace_s)


@pytest.fixture
def backend() -> Iterator[SlowBackend]:
    backend = SlowBackend(named("stuck", held(7200)), named("other", held(7200)))
    yield backend
    backend.gone.set()


def test_the_others_end_meanwhile_and_it_is_ended_once(backend: SlowBackend):
    aside = EndsAside(backend)
    for lease in aside.held():
        assert aside.end(lease, grace_s=0) == []
    wait_for(lambda: backend.ended == ["other"], 10, "the other lease's end")
    wait_for(
        lambda: [lease.name for lease in aside.held()] == ["other"], 10, "only the stuck one to be left out"
    )
    backend.gone.set()
    wait_for(lambda: backend.ended == ["other", "stuck"], 10, "the stuck lease's end")
    wait_for(lambda: len(list(aside.held())) == 2, 10, "it to be looked at again")


def test_what_is_left_and_what_went_wrong_is_logged(caplog: pytest.LogCaptureFixture):
    error = ArcadiaError("Forbidden.", what_to_do="Allow it.")
    left = {"a": error, "b": ["Pod ns/b"], "c": ValueError("odd")}
    aside = EndsAside(FakeBackend(*(named(name, held(7200)) for name in "abcd"), left=left))
    caplog.set_level(logging.INFO)
    for lease in aside.held():
        aside.end(lease, grace_s=0)
    wait_for(lambda: len(list(aside.held())) == 4, 10, "all to have ended")
    for words in ("Forbidden.", "Pod ns/b", "odd", "Nothing of lease d is left."):
        assert words in caplog.text
