"""The first answers of a finished batch."""

from __future__ import annotations

import json
from pathlib import Path

from airflow_arcadia.batch.output import samples


def write(path: Path, lines: list[dict]) -> str:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def chat(custom_id: str, text: str) -> dict:
    body = {"choices": [{"message": {"content": text}}]}
    return {"custom_id": custom_id, "response": {"status_code": 200, "body": body}, "error": None}


FAILED = {
    "custom_id": "d",
    "response": {
        "status_code": 400,
        "body": {"error": {"code": "context_length_exceeded", "message": "long"}},
    },
    "error": None,
}
TIMED_OUT = {"custom_id": "e", "response": None, "error": {"code": "timeout", "message": "too slow"}}


def test_the_first_three_answers_and_the_errors_by_code_are_shown(tmp_path: Path):
    output = write(tmp_path / "o.jsonl", [chat(name, name.upper()) for name in "abcd"])
    errors = write(tmp_path / "o.jsonl.errors.jsonl", [FAILED, FAILED, TIMED_OUT])
    shown = samples.of_output({"output": output, "errors": errors})
    assert [one["text"] for one in shown["answers"]] == ["A", "B", "C"]
    assert shown["errors"] == [{"code": "context_length_exceeded", "rows": 2}, {"code": "timeout", "rows": 1}]
    assert shown["note"] is None


def test_answers_of_all_kinds_are_shown(tmp_path: Path):
    parts = [{"type": "output_text", "text": "Yes"}, {"type": "output_text", "text": "."}]
    items = [{"type": "reasoning", "summary": []}, {"type": "message", "content": parts}]
    bodies = [
        {"object": "response", "output": items},
        {"data": [{"index": 0, "score": 0.5}]},
        {"results": [{"index": 1}]},
    ]
    lines = [{"custom_id": "a", "response": {"status_code": 200, "body": body}} for body in bodies]
    shown = samples.of_output({"output": write(tmp_path / "o.jsonl", lines)})
    assert [one["text"] for one in shown["answers"]] == [
        "Yes.",
        '[{"index": 0, "score": 0.5}]',
        '[{"index": 1}]',
    ]


def test_prompts_stand_beside_the_first_answers(tmp_path: Path):
    output = write(tmp_path / "o.jsonl", [chat(name, name.upper()) for name in "abc"])
    rows = [
        {"prompt": "one"},
        {"messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "two"}]},
        {"custom_id": "c", "url": "/v1/embeddings", "body": {"input": ["three", "four"]}},
    ]
    shown = samples.of_output({"output": output}, write(tmp_path / "in.jsonl", rows))
    assert [one["prompt"] for one in shown["answers"]] == ["one", "two", '["three", "four"]']


def test_answers_are_shown_without_prompts_where_the_input_is_not_plain_json_lines(tmp_path: Path):
    output = write(tmp_path / "o.jsonl", [chat("a", "A")])
    (tmp_path / "in.csv").write_text("prompt\none\n")
    for uri in (None, "/nope", str(tmp_path / "in.csv")):
        shown = samples.of_output({"output": output}, uri)
        assert [(one["prompt"], one["text"]) for one in shown["answers"]] == [(None, "A")]


def test_a_failed_row_shows_its_message(tmp_path: Path):
    shown = samples.of_output({"output": write(tmp_path / "o.jsonl", [FAILED, TIMED_OUT])})
    assert [one["error"] for one in shown["answers"]] == ["long", "too slow"]


def test_an_output_that_cannot_be_read_says_so():
    shown = samples.of_output({"output": "/nope/o.jsonl"})
    assert shown["answers"] == []
    assert "cannot be read from here" in shown["note"]
