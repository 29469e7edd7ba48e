"""Which failures are worth another attempt."""

import json

import pytest

from airflow_arcadia.batch.retry_policy import (
    Action,
    Failure,
    Verdict,
    backoff,
    bad_answer,
    connection_lost,
    decide,
    judge,
    not_connected,
    seconds_to_wait,
    timed_out,
)


def error(status: int, message: str = "no", code: object = None, **options: bool) -> Failure:
    raw = json.dumps({"error": {"message": message, "code": code}}).encode()
    found = judge(status, raw, **options)
    assert isinstance(found, Failure)
    return found


def kind(failure: Failure) -> tuple[Verdict, bool]:
    return failure.verdict, failure.unsure


@pytest.mark.parametrize(
    "body",
    [
        {"choices": [{"text": "", "finish_reason": "stop"}]},
        {"choices": [{"message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}]},
        {"choices": [{"message": {"content": None, "tool_calls": [{}]}, "finish_reason": {"odd": 1}}]},
        {"data": [{"embedding": [1.0]}]},
        {"data": [{"index": 0, "object": "score", "score": 0.5}]},
        {"results": [{"index": 0, "relevance_score": 0.5}]},
        {"object": "response", "status": "completed", "output": [{"type": "message"}], "error": None},
        {"object": "response", "status": "incomplete", "output": []},
    ],
)
def test_a_whole_answer_is_no_failure(body):
    assert judge(200, json.dumps(body).encode()) == body


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"error": {"message": "model overloaded"}},
        {"detail": "no"},
        {"choices": []},
        {"choices": None},
        {"choices": [{"index": 0}]},
        {"choices": [{"message": {"role": "assistant"}}]},
        {"choices": ["text"]},
        {"data": []},
        {"data": ["x"]},
        {"results": []},
        {"results": ["x"]},
        {"object": "response", "status": "completed"},
        {"object": "response", "status": "completed", "output": ["x"]},
        {"object": "response", "status": "cancelled", "output": [{"type": "message"}]},
        {"object": "response", "status": "failed", "output": [], "error": {"message": "no"}},
        {"object": "error", "message": "no"},
        {"choices": [{"finish_reason": "abort", "text": "half"}]},
        {"choices": [{"finish_reason": "error", "text": "half"}]},
        [],
        "text",
    ],
)
def test_http_200_without_an_answer_is_a_failure_of_the_row_or_of_a_sick_endpoint(body):
    found = judge(200, json.dumps(body).encode())
    assert isinstance(found, Failure)
    assert kind(found) == (Verdict.ROW, True)


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_an_endpoint_that_is_not_there_for_anyone_is_not_the_rows_failure(status: int):
    assert kind(error(status)) == (Verdict.ENDPOINT, False)


@pytest.mark.parametrize("status", [302, 403, 408, 500, 501])
def test_what_may_be_the_rows_failure_or_the_endpoints_is_asked(status: int):
    assert kind(error(status)) == (Verdict.ROW, True)


@pytest.mark.parametrize("status", [400, 405, 413, 422])
def test_a_wrong_request_is_the_rows_failure(status: int):
    assert kind(error(status)) == (Verdict.ROW, False)


def test_a_model_that_is_not_there_is_the_rows_failure_unless_the_endpoint_lists_it():
    assert kind(error(404, model_is_listed=False)) == (Verdict.ROW, False)
    assert kind(error(404, model_is_listed=True)) == (Verdict.ROW, True)


def test_a_wrong_key_is_nobodys_failure_but_the_jobs():
    assert error(401).verdict is Verdict.JOB


def test_a_context_overflow_has_its_own_code():
    found = error(400, "This model's maximum context length is 64 tokens.")
    assert (found.code, *kind(found)) == ("context_length_exceeded", Verdict.ROW, False)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (42901, (Verdict.ENDPOINT, False)),
        (50005, (Verdict.ENDPOINT, False)),
        (50006, (Verdict.ENDPOINT, False)),
        (50001, (Verdict.ROW, True)),
        (40001, (Verdict.ROW, False)),
        (40303, (Verdict.ROW, False)),
    ],
)
def test_fastchats_codes_are_read_although_they_come_as_http_400(code: int, expected: object):
    found = judge(400, json.dumps({"object": "error", "message": "no worker", "code": code}).encode())
    assert isinstance(found, Failure)
    assert kind(found) == expected


@pytest.mark.parametrize("code", [["a"], {"b": 1}, "text", None, 1.5, True])
def test_an_error_code_of_any_type_can_be_read(code: object):
    assert kind(error(400, code=code)) == (Verdict.ROW, False)


@pytest.mark.parametrize("raw", [b"", b"<html>", b"[]", b'{"choices'])
def test_an_answer_that_is_not_an_object_is_a_failure(raw: bytes):
    assert isinstance(judge(200, raw), Failure)


@pytest.mark.parametrize("raw", [b"", b"[]", b'"text"', b'{"error": null}', b'{"error": "text"}'])
def test_an_error_of_any_shape_has_a_message(raw: bytes):
    found = judge(400, raw)
    assert isinstance(found, Failure)
    assert "HTTP 400" in found.message


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("7", 7.0),
        ("0.5", 0.5),
        ("Wed, 21 Oct 2015 07:28:30 GMT", 30.0),
        ("Wed, 21 Oct 2015 07:27:00 GMT", 0.0),
        ("999999", 3600.0),
        ("-1", 0.0),
        ("nan", 0.0),
        ("soon", 0.0),
        (None, 0.0),
    ],
)
def test_retry_after_is_read_as_seconds_and_as_a_date(text: str | None, seconds: float):
    assert seconds_to_wait(text, now=1445412480.0) == seconds


def test_a_row_fails_by_itself_only_where_its_endpoint_is_well():
    unsure, sure = error(500), error(400)
    assert decide(sure, well=True, alone=False) is Action.FAIL
    assert decide(unsure, well=True, alone=False) is Action.RETRY
    assert decide(timed_out(5), well=True, alone=False) is Action.RETRY
    assert decide(error(403), well=False, alone=False) is Action.RETURN
    assert decide(bad_answer("odd"), well=False, alone=False) is Action.RETURN
    assert decide(error(503), well=False, alone=False) is Action.RETURN


def test_a_row_that_was_in_flight_at_a_death_may_have_killed_the_engine():
    for failure in (connection_lost("reset"), error(500), timed_out(5)):
        assert decide(failure, well=False, alone=False) is Action.BLAME


def test_a_row_that_was_never_sent_is_not_to_blame():
    assert decide(not_connected("refused"), well=False, alone=True) is Action.RETURN


def test_a_row_that_is_refused_alone_by_an_endpoint_that_is_well_is_to_blame():
    assert decide(error(503), well=True, alone=True) is Action.BLAME
    assert decide(error(503), well=False, alone=True) is Action.RETURN
    assert decide(error(429), well=False, alone=True) is Action.RETURN


def test_pauses_double_up_to_the_cap_and_are_spread():
    assert [backoff(attempt, 1.0, 8.0, 1.0) for attempt in (1, 2, 3, 4, 5, 999)] == [1, 2, 4, 8, 8, 8]
    assert backoff(3, 1.0, 8.0, 0.0) == 2.0
