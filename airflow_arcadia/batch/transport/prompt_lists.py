"""Several rows in one request: completions whose bodies differ in nothing but the prompt. Pure.

vLLM answers a list of prompts with one choice each and the usage of all together. With ``return_token_ids``
the choices carry their tokens, so that each row's usage is counted from its own, and a row's line is the same
whether it was sent alone or not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from airflow_arcadia.batch.openai_format import COMPLETIONS, Request

_TOKENS = ("token_ids", "prompt_token_ids")


def group_key(request: Request) -> bytes | None:
    """Rows with the same key may share a request; None: it must go alone."""
    body = request.body
    if request.url != COMPLETIONS or not isinstance(body["prompt"], str):
        return None
    if body.get("n", 1) != 1 or "return_token_ids" in body:
        return None
    others = {key: value for key, value in body.items() if key != "prompt"}
    return orjson.dumps(others, option=orjson.OPT_SORT_KEYS)


def group_body(requests: Sequence[Request]) -> dict[str, Any]:
    """The one body for several rows of one key."""
    prompts = [request.body["prompt"] for request in requests]
    return {**requests[0].body, "prompt": prompts, "return_token_ids": True}


def split_answer(body: Mapping[str, Any], count: int) -> list[dict[str, Any]] | None:
    """Each row's own answer; None when the server did not answer as vLLM does."""
    choices = body.get("choices")
    if not isinstance(choices, list) or len(choices) != count:
        return None
    answers: list[dict[str, Any] | None] = [None] * count
    for choice in choices:
        index = choice.get("index") if isinstance(choice, dict) else None
        if not isinstance(index, int) or not 0 <= index < count or answers[index] is not None:
            return None
        if not all(isinstance(choice.get(name), list) for name in _TOKENS):
            return None
        answers[index] = _one(body, choice)
    return [answer for answer in answers if answer is not None]


def _one(body: Mapping[str, Any], choice: dict[str, Any]) -> dict[str, Any]:
    completion, prompt = (len(choice[name]) for name in _TOKENS)
    counts = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": None,
    }
    usage = {**(body.get("usage") or {})}
    # Not asked for by the row: as in an answer without them.
    own = {**choice, "index": 0, **dict.fromkeys(_TOKENS)}
    return {**body, "choices": [own], "usage": {key: counts.get(key, value) for key, value in usage.items()}}
