"""Asynchronous scheduling changes no answer: the same rows, with and without it, on a real engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from airflow_arcadia.batch import BatchSpec, Endpoint, run_batch
from tests.engine.serving import TINY_ENGINE, served

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]
ON = "schedules asynchronously"
SCHEMA = {
    "type": "object",
    "properties": {"size": {"type": "integer"}, "kind": {"enum": ["file", "folder"]}},
    "required": ["size", "kind"],
    "additionalProperties": False,
}
WAYS: tuple[dict[str, Any], ...] = (
    {},
    {"max_tokens": 1},
    {"frequency_penalty": 1.5, "presence_penalty": 0.5},
    {"repetition_penalty": 1.3},
    {"logprobs": True, "top_logprobs": 3},
    {"temperature": 1.0, "seed": 7},
    {"temperature": 0.8, "seed": 7, "n": 2},
    {"min_tokens": 20, "stop": ["e"]},
    {"logit_bias": {"65": 5.0}},
    {"bad_words": ["return"]},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "it", "schema": SCHEMA}}},
)
"""What takes part in choosing the next token, each by another path."""


def write_rows(path: Path) -> None:
    """Each way several times, with prompts of many lengths, more than run at once."""
    with path.open("w") as file:
        for number in range(20 * len(WAYS)):
            text = "how does shutil copy a file? " * (1 + number % 7) + str(number)
            messages = [{"role": "user", "content": text}]
            body = {"max_tokens": 24 + number % 9, "temperature": 0, "messages": messages}
            file.write(json.dumps({**body, **WAYS[number % len(WAYS)]}) + "\n")


def answers(folder: Path, python: str, model: str, *flags: str) -> tuple[list[Any], str]:
    """The choices of every row, and the worker's log."""
    options: dict[str, Any] = {"served_model_name": "tiny", "extra_args": (*TINY_ENGINE, *flags)}
    with served(folder, python, model, **options) as worker:
        spec = BatchSpec(str(folder.parent / "rows.jsonl"), str(folder / "answers.jsonl"), "tiny")
        summary = run_batch(spec, [Endpoint(worker.url)])
        assert summary.failed == 0, (folder / "answers.jsonl").read_text()
        lines = (folder / "answers.jsonl").read_text().splitlines()
        return [
            without_rounding(json.loads(line)["response"]["body"]["choices"]) for line in lines
        ], worker.log


def without_rounding(choices: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Probabilities differ in their last digits with the rows that are computed beside a row."""
    for choice in choices:
        for token in (choice["logprobs"] or {}).get("content", ()):
            token["logprob"] = round(token["logprob"], 1)
            token["top_logprobs"] = [top["token"] for top in token["top_logprobs"]]
    return choices


def test_the_answers_are_those_of_vllms_own_way(tmp_path: Path, worker_python: str, tiny_model: str):
    write_rows(tmp_path / "rows.jsonl")
    ahead, log = answers(tmp_path / "ahead", worker_python, tiny_model)
    usual, usual_log = answers(tmp_path / "usual", worker_python, tiny_model, "--no-async-scheduling")
    assert ON in log
    assert ON not in usual_log
    for number, pair in enumerate(zip(ahead, usual, strict=True)):
        assert pair[0] == pair[1], (number, WAYS[number % len(WAYS)])
