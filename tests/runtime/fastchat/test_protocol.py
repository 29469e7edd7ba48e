"""FastChat's protocol in terms of OpenAI's: pure translation."""

import pytest

from airflow_arcadia.runtime.fastchat.protocol import (
    StreamTranslator,
    completion_request,
    embeddings_answer,
    error_answer,
    error_code,
    generate_answer,
)


def test_a_request_with_only_a_prompt_takes_fastchats_defaults():
    body = completion_request({"prompt": "Hi"}, "m", stream=False)
    assert (body["model"], body["max_tokens"], body["temperature"], body["top_p"]) == ("m", 256, 1.0, 1.0)
    assert "top_k" not in body


@pytest.mark.parametrize("temperature", [0, 1e-6, "0"])
def test_no_temperature_is_greedy(temperature: object):
    body = completion_request({"prompt": "Hi", "temperature": temperature, "top_p": 0.3}, "m", stream=False)
    assert (body["temperature"], body["top_p"]) == (0.0, 1.0)


def test_all_that_vllm_understands_is_passed_on():
    params = {
        "prompt": "Hi",
        "model": "other",
        "top_k": 5,
        "max_new_tokens": 7,
        "presence_penalty": 0.1,
        "frequency_penalty": 0.2,
        "stop": "###",
        "stop_token_ids": [2, None],
        "use_beam_search": False,
        "best_of": None,
    }
    body = completion_request(params, "m", stream=True)
    assert (body["model"], body["top_k"], body["max_tokens"]) == ("other", 5, 7)
    assert (body["stop"], body["stop_token_ids"]) == (["###"], [2])
    assert not {"use_beam_search", "best_of"} & set(body)
    assert body["stream_options"]["include_usage"]


@pytest.mark.parametrize("prompt", [None, "", 7, ["a"]])
def test_a_request_without_a_prompt_is_refused(prompt: object):
    with pytest.raises(ValueError, match="prompt"):
        completion_request({"prompt": prompt}, "m", stream=False)


COMPLETION = {
    "choices": [{"text": " there", "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 2},
}


@pytest.mark.parametrize(
    ("echo", "text"), [({}, "Hi there"), ({"echo": True}, "Hi there"), ({"echo": False}, " there")]
)
def test_the_prompt_is_repeated_unless_told_not_to(echo: dict, text: str):
    answer = generate_answer({"prompt": "Hi", **echo}, COMPLETION)
    assert answer["text"] == text
    assert answer["usage"] == {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    assert (answer["finish_reason"], answer["error_code"]) == ("stop", 0)


def test_a_stream_tells_all_the_text_so_far_each_time():
    translator = StreamTranslator({"prompt": "Hi", "echo": False})
    texts = [
        translator.feed({"choices": [{"text": text, "finish_reason": finish}]})["text"]
        for text, finish in ((" a", None), (" b", "length"))
    ]
    assert texts == [" a", " a b"]
    last = translator.feed({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}})
    assert (last["text"], last["finish_reason"], last["usage"]["total_tokens"]) == (" a b", "length", 3)


@pytest.mark.parametrize(
    ("status", "message", "code"),
    [
        (400, "maximum context length is 1024 tokens", 40303),
        (400, "temperature must be non-negative", 40001),
        (401, "no key", 40101),
        (404, "no such model", 40301),
        (429, "slow down", 42901),
        (503, "draining", 42903),
        (500, "boom", 50001),
        (418, "teapot", 50001),
    ],
)
def test_http_errors_become_fastchats_codes(status: int, message: str, code: int):
    assert error_code(status, message) == code
    assert error_answer(status, {"error": {"message": message}}) == {"text": message, "error_code": code}


def test_an_error_without_words_tells_its_status():
    assert error_answer(502, "not json")["text"] == "HTTP 502"


def test_embeddings_keep_the_order_of_the_input():
    answer = {
        "data": [{"index": 1, "embedding": [2.0]}, {"index": 0, "embedding": [1.0]}],
        "usage": {"prompt_tokens": 4},
    }
    assert embeddings_answer(answer) == {"embedding": [[1.0], [2.0]], "token_num": 4}


LOGPROBS = {
    "tokens": [" there"],
    "token_logprobs": [-0.5],
    "text_offset": [0],
    "top_logprobs": [{" there": -0.5}],
}


def test_logprobs_are_asked_for_and_answered_as_fastchats_model_worker_does():
    params = {"prompt": "Hi", "logprobs": 1, "echo": False}
    request = completion_request(params, "m", stream=False)
    assert (request["logprobs"], request["echo"]) == (1, False)
    choice = {"text": " there", "logprobs": LOGPROBS}
    assert generate_answer(params, {"choices": [choice]})["logprobs"] == LOGPROBS
    assert "logprobs" not in completion_request({"prompt": "Hi"}, "m", stream=False)


def test_a_stream_tells_all_the_logprobs_so_far():
    translator = StreamTranslator({"prompt": "Hi", "logprobs": 1, "echo": False})
    for _ in range(2):
        answer = translator.feed({"choices": [{"text": " there", "logprobs": LOGPROBS}]})
    assert answer["logprobs"]["tokens"] == [" there", " there"]
    assert answer["logprobs"]["token_logprobs"] == [-0.5, -0.5]


def test_with_logprobs_the_engine_repeats_the_prompt_with_its_tokens():
    params = {"prompt": "Hi", "logprobs": 0}
    assert completion_request(params, "m", stream=False)["echo"] is True
    assert generate_answer(params, {"choices": [{"text": "Hi there"}]})["text"] == "Hi there"
