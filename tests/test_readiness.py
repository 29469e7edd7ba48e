"""Readiness: evidence in, one decision out."""

import itertools

import pytest

from airflow_arcadia.readiness import (
    NOT_LISTENING,
    Failed,
    Observation,
    ProcessObservation,
    Ready,
    UsageFilter,
    Waiting,
    decide,
    likely_cause,
    without_usage,
)

ALIVE = ProcessObservation(True)


def at(seconds: float, seen: Observation) -> Waiting | Ready | Failed:
    return decide(seen, started_at=1000.0, now=1000.0 + seconds, startup_timeout_s=60.0)


def test_only_all_of_the_evidence_makes_it_ready():
    for listed, answers, generates in itertools.product((True, False, None), repeat=3):
        outcome = at(1, Observation(ALIVE, listed, answers, generates))
        assert isinstance(outcome, Ready) == (listed is answers is generates is True)


@pytest.mark.parametrize(
    ("seen", "what"),
    [
        (Observation(ProcessObservation(None)), "its process"),
        (Observation(ALIVE), "the worker to serve the model"),
        (Observation(ALIVE, None, True), "the controller to list the model"),
        (Observation(ALIVE, True, True, False, "HTTP 500"), r"the first generated token \(HTTP 500\)"),
    ],
)
def test_what_it_waits_for_is_named_and_ends_with_the_time_out(seen: Observation, what: str):
    waiting = at(59, seen)
    assert isinstance(waiting, Waiting)
    assert what.replace("\\", "") in waiting.what
    failed = at(60, seen)
    assert isinstance(failed, Failed)
    assert what.replace("\\", "") in failed.what
    assert "startup_timeout" in failed.what_to_do


def test_how_far_the_model_is_loaded_is_said():
    waiting = at(1, Observation(ALIVE, loading="loading the weights (50 %)", said=NOT_LISTENING))
    assert isinstance(waiting, Waiting)
    assert waiting.what == "the worker to serve the model: loading the weights (50 %)"
    refused = at(1, Observation(ALIVE, said="HTTP 500 from http://h:1", loading="starting the server"))
    assert isinstance(refused, Waiting)
    assert refused.what.endswith("starting the server (HTTP 500 from http://h:1)")


USAGE = [
    "INFO 11-26 [utils.py:1] before",
    "usage: api_server.py [-h] [--headless] [--api-server-count API_SERVER_COUNT]",
    "                     [--config CONFIG] [--host HOST]",
    "                     [--dtype {auto,bfloat16,float,float16,float32,half}]",
    "                     ...",
]
ERROR = "api_server.py: error: argument --dtype: invalid choice: 'float99' (choose from auto, half)"


@pytest.mark.parametrize("usage", [USAGE, USAGE[2:]], ids=["whole", "begins before the last lines"])
def test_what_is_wrong_with_a_command_line_comes_first_and_its_usage_is_cut(usage: list[str]):
    lines = [*usage, ERROR, "arcadia: ended: vLLM's server failed with exit code 2; see the lines above"]
    failed = at(1, Observation(ProcessObservation(False, "exit code 4", lines)))
    assert isinstance(failed, Failed)
    assert "argument --dtype: invalid choice: 'float99'" in failed.sentences.splitlines()[0]
    assert "--headless" not in failed.sentences
    assert "--host" not in failed.sentences
    assert ERROR in failed.sentences


def test_a_usage_is_cut_line_by_line_too():
    usage = UsageFilter()
    lines = [*USAGE, ERROR, "  after"]
    assert [line for line in lines if not usage.hides(line)] == [USAGE[0], ERROR, "  after"]


def test_a_log_without_a_usage_stays_whole():
    assert without_usage(["  [a] b", "ValueError: c"]) == ["  [a] b", "ValueError: c"]
    assert without_usage(["plain", ERROR]) == ["plain", ERROR]


def test_a_worker_that_refuses_the_key_fails_at_once():
    failed = at(1, Observation(ALIVE, True, False, key_refused=True))
    assert isinstance(failed, Failed)
    assert "does not accept the API key" in failed.what
    assert "still runs" in failed.still_running


def test_a_process_that_cannot_be_read_is_not_dead():
    assert isinstance(at(1, Observation(ProcessObservation(None))), Waiting)


def test_a_dead_worker_fails_at_once_with_the_cause_and_its_log():
    lines = ["INFO loading", "ValueError: the model is too large", "arcadia: vLLM's server ended by itself"]
    failed = at(1, Observation(ProcessObservation(False, "exit code 4", lines)))
    assert isinstance(failed, Failed)
    assert "exit code 4" in failed.what
    assert "ValueError: the model is too large" in failed.what
    assert failed.sentences.endswith("\n".join(lines))


@pytest.mark.parametrize(
    ("lines", "cause"),
    [
        (
            ["RuntimeError: first", "torch.OutOfMemoryError: CUDA out of memory", "INFO x"],
            "torch.OutOfMemoryError",
        ),
        (["(EngineCore pid=1) ERROR 11-23 [core.py:1] KeyError: 'x'"], "KeyError: 'x'"),
        (["arcadia: cannot start: no Ray"], "cannot start: no Ray"),
        (
            [
                "arcadia: ready: tiny at http://h:1",
                "arcadia: stopping: its lease lapsed 3 s ago",
                "arcadia: draining 0 requests",
                "RuntimeError: a consequence",
                "arcadia: stopped",
            ],
            "stopping: its lease lapsed 3 s ago",
        ),
        (["arcadia: ready: tiny at http://h:1", "arcadia: registered with the controller http://c"], None),
        (["arcadia: ended: vLLM's server was killed by SIGKILL"], "ended: vLLM's server was killed"),
        (["ValueError: the cause", "arcadia: ended: vLLM's server failed"], "ValueError: the cause"),
        (["INFO all is well"], None),
        ([], None),
    ],
)
def test_the_likely_cause_is_a_decision_or_the_last_exception(lines: list[str], cause: str | None):
    found = likely_cause(lines)
    assert found is None if cause is None else found is not None and found.startswith(cause)
