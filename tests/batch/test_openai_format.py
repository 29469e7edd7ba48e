"""Rows in, lines out."""

import json
import tracemalloc

import pytest

from airflow_arcadia.batch import BatchSpec
from airflow_arcadia.batch.input.row_parser import Shape
from airflow_arcadia.batch.openai_format import (
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    RERANK,
    RESPONSES,
    SCORE,
    Request,
    RowError,
    answer_line,
    body_bytes,
    complete_body,
    error_line,
    is_answered,
    row_id,
)


def parse(row: object, **parameters: object) -> Request | RowError:
    line = row if isinstance(row, bytes) else json.dumps(row).encode()
    return Shape(BatchSpec("in", "out", "tiny", parameters), "tiny").parse(line, 4)


@pytest.mark.parametrize(
    ("row", "url"),
    [({"prompt": "x"}, COMPLETIONS), ({"messages": [{"role": "user"}]}, CHAT), ({"input": "x"}, EMBEDDINGS)],
)
def test_a_short_row_is_its_own_body(row: dict[str, object], url: str):
    assert parse({**row, "custom_id": "mine"}) == Request("mine", url, {**row, "model": "tiny"})


def test_openais_batch_format_is_taken_as_it_is():
    body = {
        "model": "lora",
        "messages": [{"role": "user", "content": "x"}],
        "response_format": {},
    }
    row = {"custom_id": "a", "method": "POST", "url": CHAT, "body": body}
    assert parse(row, temperature=0) == Request("a", CHAT, {**body, "temperature": 0})


def test_a_row_without_a_custom_id_is_named_by_its_number():
    assert parse({"prompt": "x"}).custom_id == "row-5"


@pytest.mark.parametrize(
    ("row", "code"),
    [
        (b"{", "invalid_json"),
        (b"nan", "invalid_json"),
        ([], "invalid_row"),
        (None, "invalid_row"),
        ({}, "no_prompt"),
        ({"prompt": ""}, "no_prompt"),
        ({"prompt": None}, "no_prompt"),
        ({"prompt": 3}, "invalid_row"),
        ({"messages": []}, "no_prompt"),
        ({"messages": ["hello"]}, "invalid_row"),
        ({"messages": [{"content": "no role"}]}, "invalid_row"),
        ({"url": CHAT, "body": {"prompt": "x"}}, "no_prompt"),
        ({"url": CHAT, "body": "x"}, "invalid_row"),
        ({"url": "/v1/images", "body": {"prompt": "x"}}, "unsupported_url"),
        ({"url": ["/v1/completions"], "body": {"prompt": "x"}}, "unsupported_url"),
        ({"url": CHAT, "method": "GET", "body": {}}, "invalid_row"),
        ({"prompt": "x", "custom_id": {}}, "invalid_row"),
        ({"prompt": "x", "model": 3}, "invalid_row"),
    ],
)
def test_what_cannot_be_sent_has_a_code(row: object, code: str):
    answer = parse(row)
    assert isinstance(answer, RowError)
    assert answer.code == code
    assert answer.message


def test_the_rows_own_parameters_win_over_the_jobs():
    body = complete_body(COMPLETIONS, {"prompt": "x", "temperature": 1}, "m", {"temperature": 0, "seed": 3})
    assert body == {"prompt": "x", "temperature": 1, "seed": 3, "model": "m"}


def test_a_rows_length_limit_replaces_the_jobs_under_either_name():
    body = complete_body(CHAT, {"max_tokens": 5}, "m", {"max_completion_tokens": 9})
    assert body == {"max_tokens": 5, "model": "m"}


def test_embeddings_take_no_sampling_parameters():
    body = complete_body(
        EMBEDDINGS, {"input": "x"}, "m", {"temperature": 0, "max_tokens": 3, "dimensions": 8}
    )
    assert body == {"input": "x", "model": "m", "dimensions": 8}


@pytest.mark.parametrize(
    "row",
    [
        {"url": RESPONSES, "body": {"input": "x"}},
        {"url": RESPONSES, "input": [{"role": "user", "content": "x"}]},
        {"url": SCORE, "body": {"queries": "a", "documents": ["b"]}},
        {"url": SCORE, "text_1": "a", "text_2": "b"},
        {"url": RERANK, "query": "a", "documents": ["b", "c"]},
    ],
)
def test_responses_scores_and_rerankings_are_asked_for_by_their_url(row: dict[str, object]):
    found = parse(row)
    assert isinstance(found, Request)
    assert (found.url, found.body["model"]) == (row["url"], "tiny")


@pytest.mark.parametrize(
    "row",
    [{"url": SCORE, "text_1": "a"}, {"url": RERANK, "query": "a"}, {"url": RESPONSES, "prompt": "a"}],
)
def test_a_row_without_what_its_url_needs_is_not_sent(row: dict[str, object]):
    found = parse(row)
    assert isinstance(found, RowError)
    assert found.code == "no_prompt"


def test_rows_that_generate_nothing_take_no_parameters_of_sampling():
    parameters = {"temperature": 0, "max_tokens": 5, "top_n": 2}
    for url in (SCORE, RERANK):
        assert complete_body(url, {"query": "a"}, "m", parameters) == {"query": "a", "model": "m", "top_n": 2}


def test_a_response_has_the_jobs_length_limit_under_its_own_name_and_is_not_kept():
    body = complete_body(RESPONSES, {"input": "a", "background": True}, "m", {"max_tokens": 5, "seed": 1})
    assert body == {"input": "a", "model": "m", "max_output_tokens": 5, "seed": 1, "store": False}
    own = complete_body(RESPONSES, {"input": "a", "max_output_tokens": 9}, "m", {"max_tokens": 5})
    assert own["max_output_tokens"] == 9


def test_a_response_has_no_id_or_time_of_the_servers():
    def made(number: int) -> dict[str, object]:
        return {
            "object": "response",
            "id": f"resp_{number}",
            "created_at": number,
            "output": [
                {"type": "reasoning", "id": f"rs_{number}"},
                {
                    "type": "message",
                    "id": f"msg_{number}",
                    "content": [{"type": "output_text", "text": "hi"}],
                },
                {"type": "function_call", "id": f"fc_{number}", "call_id": f"call_{number}", "name": "f"},
            ],
            "usage": {
                "input_tokens": 3,
                "input_tokens_details": {"cached_tokens": number, "cached_tokens_per_turn": [number]},
            },
        }

    first, second = (answer_line("a1", "id", made(number)) for number in (1, 2))
    assert first == second
    body = json.loads(first)["response"]["body"]
    assert [item["id"] for item in body["output"]] == ["rs_a1_0", "msg_a1_1", "fc_a1_2"]
    assert body["output"][2]["call_id"] == "call_a1_2"


def test_a_batch_never_streams():
    assert "stream" not in complete_body(CHAT, {"stream": True, "stream_options": {}}, "m", {})


def test_two_rows_are_the_same_only_in_place_content_and_job():
    ids = {row_id(b"a", 0, b"j"), row_id(b"a", 1, b"j"), row_id(b"b", 0, b"j"), row_id(b"a", 0, b"k")}
    assert len(ids) == 4
    assert row_id(b"a", 0, b"j") in ids


def test_what_an_engine_makes_up_is_replaced_by_what_the_row_determines():
    def body(number: int) -> dict[str, object]:
        call = {"id": f"chatcmpl-tool-{number}", "type": "function"}
        return {
            "id": f"chatcmpl-{number}",
            "created": number,
            "choices": [{"message": {"content": "x", "tool_calls": [call]}}],
            "usage": {"prompt_tokens": 3, "prompt_tokens_details": {"cached_tokens": number}},
        }

    first, second = (answer_line("abc", "row-1", body(number)) for number in (1, 2))
    assert first == second
    row = json.loads(first)
    assert row["response"]["body"]["id"] == "chatcmpl-abc"
    assert row["response"]["body"]["usage"]["prompt_tokens"] == 3


def test_an_error_row_has_openais_shape():
    assert json.loads(error_line("abc", RowError("mine", "no_prompt", "The row has none."))) == {
        "id": "batch_req_abc",
        "custom_id": "mine",
        "response": None,
        "error": {"code": "no_prompt", "message": "The row has none."},
    }


@pytest.mark.parametrize(
    ("body", "prefix"),
    [
        ({"object": "chat.completion", "choices": [{"message": {"content": "x"}}]}, "chatcmpl"),
        ({"object": "text_completion", "choices": [{"text": "x"}]}, "cmpl"),
        ({"object": "list", "data": [{"embedding": [1.0]}]}, "embd"),
    ],
)
@pytest.mark.parametrize("made", ["0b4d8ae9a1c34f0", "e564ab12-81954a", 17, None])
def test_no_form_of_a_servers_id_enters_the_output(body: dict[str, object], prefix: str, made: object):
    of_the_server = {"system_fingerprint": "vllm-1-tp2", "kv_transfer_params": {"remote_engine_id": "6f"}}
    row = json.loads(answer_line("abc", "row-1", {**body, "id": made, **of_the_server}))
    assert row["response"]["body"] == {**body, "id": f"{prefix}-abc", **dict.fromkeys(of_the_server)}


def test_an_answers_audio_has_no_id_of_the_servers():
    audio = {"id": "audio_6f", "expires_at": 1_700_000_000, "data": "UklGRg=="}
    body = {"choices": [{"message": {"content": None, "audio": audio}}]}
    row = json.loads(answer_line("abc", "row-1", body))
    found = row["response"]["body"]["choices"][0]["message"]["audio"]
    assert found == {"id": "audio_abc_0", "expires_at": 0, "data": "UklGRg=="}


@pytest.mark.parametrize(
    ("given", "kind", "param", "code"),
    [
        ({"message": "too long", "type": "BadRequestError", "code": 400}, "BadRequestError", None, "ours"),
        ({"message": "too long", "code": "rate_limit_exceeded"}, "invalid_request_error", None, None),
        (
            {"message": "too long", "type": 3, "param": "n", "code": ["x"]},
            "invalid_request_error",
            "n",
            "ours",
        ),
    ],
)
def test_what_a_server_refused_stands_in_the_response(
    given: dict[str, object], kind: str, param: str | None, code: str | None
):
    error = RowError("mine", "ours", "HTTP 400: too long", 400, given)
    assert json.loads(error_line("abc", error)) == {
        "id": "batch_req_abc",
        "custom_id": "mine",
        "response": {
            "status_code": 400,
            "request_id": "req_abc",
            "body": {
                "error": {
                    "message": "too long",
                    "type": kind,
                    "param": param,
                    "code": code or given["code"],
                }
            },
        },
        "error": None,
    }


def test_an_answer_with_an_error_in_it_is_not_taken_for_one():
    error = RowError("mine", "server_error", "model overloaded", 200, {"message": "model overloaded"})
    row = json.loads(error_line("abc", error))
    assert (row["response"], row["error"]["code"]) == (None, "server_error")
    assert not is_answered(row)


def test_answers_and_both_kinds_of_error_rows_are_told_apart():
    body = {"choices": [{"text": "x"}]}
    assert is_answered(json.loads(answer_line("abc", "row-1", body)))
    assert not is_answered(json.loads(error_line("abc", RowError("a", "no_prompt", "It has none."))))
    assert not is_answered(json.loads(error_line("abc", RowError("a", "x", "refused", 400, {}))))


@pytest.mark.parametrize("size", [500, 1500, 32_000])
def test_a_request_takes_no_more_memory_than_its_bytes(size: int):
    """The bytes that ``orjson`` returns take several times as much, for as long as they are kept."""
    body = {"model": "tiny", "prompt": "x" * size}
    tracemalloc.start()
    try:
        sent = body_bytes(body)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert json.loads(sent) == body
    assert held < 1.5 * len(sent)
