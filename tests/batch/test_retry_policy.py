"""Which failures are worth another attempt."""

import json

import pytest

from airflow_arcadia.batch.retry_policy import (
    MAX_LOSSES,
    Failure,
    backoff,
    connection_lost,
    is_exhausted,
    judge,
    timed_out,
)


def error(status: int, message: str = "no", code: object = None, **headers: str) -> Failure:
    raw = json.dumps({"error": {"message": message, "code": code}}).encode()
    found = judge(status, raw, headers.get("retry_after"))
    assert isinstance(found, Failure)
    return found


def test_a_whole_answer_is_no_failure():
    assert judge(200, b'{"choices":[{"finish_reason":"stop"}]}') == {"choices": [{"finish_reason": "stop"}]}


@pytest.mark.parametrize("status", [408, 500, 502, 503, 504])
def test_a_servers_error_is_tried_again(status: int):
    assert error(status).retry


@pytest.mark.parametrize("status", [400, 404, 405, 413, 422])
def test_a_wrong_request_is_not(status: int):
    assert not error(status).retry


def test_a_context_overflow_has_its_own_code_and_is_not_tried_again():
    found = error(400, "This model's maximum context length is 64 tokens.")
    assert (found.code, found.retry) == ("context_length_exceeded", False)


@pytest.mark.parametrize("code", [50005, 50006])
def test_fastchats_lost_workers_are_tried_again_although_they_come_as_http_400(code: int):
    found = judge(400, json.dumps({"object": "error", "message": "no worker", "code": code}).encode())
    assert isinstance(found, Failure)
    assert found.retry


def test_a_wrong_key_ends_the_batch():
    assert error(401).fatal


def test_a_rate_limit_waits_as_long_as_it_says():
    assert error(429, retry_after="7").retry_after_s == 7
    assert error(429, retry_after="soon").retry_after_s == 0


@pytest.mark.parametrize("reason", ["abort", "error"])
def test_an_answer_the_engine_gave_up_on_is_no_answer(reason: str):
    found = judge(200, json.dumps({"choices": [{"finish_reason": reason, "text": "half"}]}).encode())
    assert isinstance(found, Failure)
    assert found.retry


@pytest.mark.parametrize("raw", [b"", b"<html>", b"[]", b'{"choices'])
def test_an_answer_that_is_no_object_is_tried_again(raw: bytes):
    found = judge(200, raw)
    assert isinstance(found, Failure)
    assert found.retry


@pytest.mark.parametrize("raw", [b"", b"[]", b'"text"', b'{"error": null}', b'{"error": "text"}'])
def test_an_error_of_any_shape_has_a_message(raw: bytes):
    found = judge(400, raw)
    assert isinstance(found, Failure)
    assert "HTTP 400" in found.message


def test_a_row_is_given_up_after_its_attempts_or_many_lost_connections():
    assert not is_exhausted(timed_out(5), 4, 0, 5)
    assert is_exhausted(timed_out(5), 5, 0, 5)
    assert not is_exhausted(connection_lost("reset"), 0, MAX_LOSSES - 1, 1)
    assert is_exhausted(connection_lost("reset"), 0, MAX_LOSSES, 1)
    assert is_exhausted(error(400), 1, 0, 5)


def test_pauses_double_up_to_the_cap_and_are_spread():
    assert [backoff(attempt, 1.0, 8.0, 1.0) for attempt in (1, 2, 3, 4, 5, 999)] == [1, 2, 4, 8, 8, 8]
    assert backoff(3, 1.0, 8.0, 0.0) == 2.0
