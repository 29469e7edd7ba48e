"""FastChat's worker protocol (0.2.36) in terms of the OpenAI API. Pure translation, no I/O.

Requests and answers are those of ``fastchat.serve.base_model_worker`` and ``vllm_worker``; error codes those
of ``fastchat.constants.ErrorCode``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow_arcadia.batch import error_codes

VALIDATION = error_codes.VALIDATION

_BY_STATUS = {
    400: error_codes.VALIDATION,
    401: error_codes.AUTHENTICATION,
    403: error_codes.AUTHENTICATION,
    404: error_codes.INVALID_MODEL,
    422: error_codes.VALIDATION,
    429: error_codes.RATE_LIMIT,
    503: error_codes.OVERLOADED,
}


def error_code(status: int, message: str) -> int:
    """FastChat's code for an HTTP error of vLLM's server."""
    if status == 400 and error_codes.tells_context_overflow(message):
        return error_codes.CONTEXT_OVERFLOW
    return _BY_STATUS.get(status, error_codes.INTERNAL)


def error_answer(status: int, body: Any) -> dict[str, Any]:
    """A failed call as FastChat's worker reports it: HTTP 200 with ``text`` and ``error_code``."""
    error = body.get("error", body) if isinstance(body, Mapping) else {}
    message = str(error.get("message") or error.get("detail") or f"HTTP {status}")
    return {"text": message, "error_code": error_code(status, message)}


def completion_request(params: Mapping[str, Any], model: str, *, stream: bool) -> dict[str, Any]:
    """Body for ``/v1/completions`` from a ``/worker_generate`` request.

    ``best_of`` and ``use_beam_search`` are dropped: vLLM has neither any more. Raises ValueError when there
    is no prompt.
    """
    prompt = params.get("prompt")
    if not isinstance(prompt, str) or not prompt:
        raise ValueError("prompt must be a text that is not empty")
    temperature = float(params.get("temperature", 1.0))
    greedy = 0 <= temperature <= 1e-5
    stop = params.get("stop") or []
    body: dict[str, Any] = {
        "model": params.get("model") or model,
        "prompt": prompt,
        "max_tokens": int(params.get("max_new_tokens") or 256),
        "temperature": 0.0 if greedy else temperature,
        # FastChat's servers send 0 or 1 at will; nucleus sampling wants (0, 1].
        "top_p": 1.0 if greedy else max(float(params.get("top_p", 1.0)), 1e-5),
        "presence_penalty": float(params.get("presence_penalty") or 0.0),
        "frequency_penalty": float(params.get("frequency_penalty") or 0.0),
        "stop": [stop] if isinstance(stop, str) else [text for text in stop if text],
        "stop_token_ids": [i for i in params.get("stop_token_ids") or [] if i is not None],
        "stream": stream,
    }
    if int(params.get("top_k") or -1) > 0:
        body["top_k"] = int(params["top_k"])
    if params.get("logprobs") is not None:
        body["logprobs"] = int(params["logprobs"])
        # The prompt's tokens are among them where it is repeated.
        body["echo"] = bool(params.get("echo", True))
    if stream:
        body["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
    return body


def generate_answer(params: Mapping[str, Any], completion: Mapping[str, Any]) -> dict[str, Any]:
    """``/worker_generate``'s answer from a whole ``/v1/completions`` answer."""
    choice = completion["choices"][0]
    answer = _answer(params, choice["text"], choice.get("finish_reason"), completion.get("usage"))
    return answer | {"logprobs": choice.get("logprobs")}


class StreamTranslator:
    """Turns completion chunks (new text each) into FastChat's (all text so far each)."""

    def __init__(self, params: Mapping[str, Any]) -> None:
        self._params = params
        self._text = ""
        self._finish: str | None = None
        self._usage: Any = None
        self._logprobs: dict[str, list[Any]] | None = None

    def feed(self, chunk: Mapping[str, Any]) -> dict[str, Any]:
        """The answer after one more chunk."""
        self._usage = chunk.get("usage") or self._usage
        for choice in chunk.get("choices") or ():
            self._text += choice.get("text") or ""
            self._finish = choice.get("finish_reason") or self._finish
            self._add_logprobs(choice.get("logprobs") or {})
        return _answer(self._params, self._text, self._finish, self._usage) | {"logprobs": self._logprobs}

    def _add_logprobs(self, more: Mapping[str, Any]) -> None:
        for key, values in more.items():
            if isinstance(values, list):
                self._logprobs = self._logprobs or {}
                self._logprobs[key] = [*self._logprobs.get(key, ()), *values]


def embeddings_answer(answer: Mapping[str, Any]) -> dict[str, Any]:
    """``/worker_get_embeddings``' answer from ``/v1/embeddings``'."""
    rows = sorted(answer["data"], key=lambda row: row["index"])
    return {
        "embedding": [row["embedding"] for row in rows],
        "token_num": (answer.get("usage") or {}).get("prompt_tokens", 0),
    }


def _answer(params: Mapping[str, Any], text: str, finish: str | None, usage: Any) -> dict[str, Any]:
    usage = usage or {}
    # With logprobs the engine repeats the prompt itself.
    repeats = params.get("echo", True) and params.get("logprobs") is None
    prompt_tokens, completion_tokens = usage.get("prompt_tokens", 0), usage.get("completion_tokens") or 0
    return {
        # FastChat's worker repeats the prompt unless told not to.
        "text": (params["prompt"] if repeats else "") + text,
        "error_code": 0,
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        },
        "finish_reason": finish,
    }
