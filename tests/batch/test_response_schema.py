"""Answers are asked for by a schema, and those that do not fit it become error rows."""

import json
from pathlib import Path
from typing import Any

import pytest

from airflow_arcadia.batch import BatchSpec, Endpoint, check_input, run_batch_async
from airflow_arcadia.batch.openai_format import CHAT, Request
from airflow_arcadia.batch.response_schema import problem_of
from airflow_arcadia.exceptions import ArcadiaConfigError, BatchInputError
from tests.batch.fake_engine import FakeEngine
from tests.batch.reading import answers, code_of

SCHEMA = {
    "type": "object",
    "properties": {"verdict": {"enum": ["good", "bad"]}, "score": {"type": "integer", "minimum": 0}},
    "required": ["verdict"],
}


def chat(content: Any, finish: str = "stop", **message: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "message": {"content": content, **message}, "finish_reason": finish}]}


def asking(schema: Any = SCHEMA, kind: str = "json_schema") -> Request:
    asked: dict[str, Any] = {"type": kind}
    if schema is not None:
        asked["json_schema"] = {"name": "answer", "schema": schema}
    return Request("id", CHAT, {"model": "m", "messages": [], "response_format": asked})


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('{"verdict": "good", "score": 1}', None),
        ('{"verdict": "good", "score": -1}', "$.score"),
        ('{"verdict": "great"}', "$.verdict"),
        ("{}", "'verdict' is a required property"),
        ('{"verdict": ', "not JSON"),
        ("", "not JSON"),
        (None, "no text"),
        (["x"], "no text"),
    ],
)
def test_what_is_wrong_with_an_answer_is_told(content: Any, told: str | None):
    found = problem_of(asking(), chat(content))
    assert (found is None) == (told is None)
    assert told is None or told in str(found)


def test_an_answer_that_was_cut_off_is_said_to_be():
    assert "length limit" in str(problem_of(asking(), chat('{"verdict": "go', "length")))


def test_every_choice_is_checked():
    good, bad = chat('{"verdict": "good"}'), chat("no")
    assert problem_of(asking(), {"choices": [*good["choices"], *bad["choices"]]}) is not None


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        (asking(None, "json_object"), chat("[1]")),
        (asking(None, "text"), chat("free text")),
        (asking(), chat(None, tool_calls=[{"id": "x"}])),
        (Request("id", CHAT, {"model": "m"}), chat("free text")),
        (Request("id", "/v1/embeddings", {"model": "m"}), {"data": []}),
    ],
)
def test_what_a_row_did_not_ask_for_is_not_checked(request_: Request, answer: dict[str, Any]):
    assert problem_of(request_, answer) is None


def test_nothing_is_fetched_that_a_schema_refers_to():
    found = problem_of(asking({"$ref": "http://127.0.0.1:1/schema.json"}), chat("{}"))
    assert found == "The answer cannot be checked: _WrappedReferencingError."


def test_an_answer_of_endless_depth_does_not_end_the_batch():
    schema = {"$ref": "#/$defs/list", "$defs": {"list": {"type": "array", "items": {"$ref": "#/$defs/list"}}}}
    assert "cannot be checked" in str(problem_of(asking(schema), chat("[" * 900 + "]" * 900)))


async def test_each_row_is_asked_for_the_schema_and_a_misfit_is_an_error_row_with_its_answer(
    engine: FakeEngine, tmp_path: Path, output: str
):
    own = {"type": "text"}
    rows: list[dict[str, Any]] = [
        {"messages": [{"role": "user", "content": "fits"}]},
        {"messages": [{"role": "user", "content": "misfits"}]},
        {"messages": [{"role": "user", "content": "free"}], "response_format": own},
        {"input": "a vector"},
    ]
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    usage = {"prompt_tokens": 2, "completion_tokens": 5}
    engine.answering["fits"] = {**chat('{"verdict": "good"}'), "usage": usage}
    engine.answering["misfits"] = {**chat('{"verdict": 5}'), "usage": usage}
    job = BatchSpec(str(source), output, "tiny", response_schema=SCHEMA)
    summary = await run_batch_async(job, [Endpoint(engine.url)])
    assert (summary.ok, summary.failed) == (3, 1)
    sent = [body.get("response_format") for body in engine.bodies if "messages" in body]
    assert sent.count({"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}) == 2
    assert own in sent
    written = answers(output)
    assert [code_of(row) for row in written] == [None, "invalid_output", None, None]
    assert written[1]["response"]["body"]["choices"][0]["message"]["content"] == '{"verdict": 5}'
    assert "$.verdict" in written[1]["error"]["message"]
    assert summary.completion_tokens >= 10


async def test_another_schema_is_another_batch(engine: FakeEngine, tmp_path: Path, output: str):
    source = tmp_path / "in.jsonl"
    source.write_text('{"prompt": "a"}\n')
    engine.answering["a"] = {"choices": [{"text": "1"}]}
    job = BatchSpec(str(source), output, "tiny", response_schema={"type": "integer"})
    await run_batch_async(job, [Endpoint(engine.url)])
    with pytest.raises(BatchInputError, match="another parameters"):
        await run_batch_async(BatchSpec(str(source), output, "tiny"), [Endpoint(engine.url)])


def test_a_schema_that_is_none_is_refused_before_a_row_is_sent(tmp_path: Path, output: str):
    (tmp_path / "in.jsonl").write_text('{"prompt": "a"}\n')
    with pytest.raises(BatchInputError, match="not a JSON schema"):
        check_input(BatchSpec(str(tmp_path / "in.jsonl"), output, "tiny", response_schema={"type": "thing"}))
    with pytest.raises(ArcadiaConfigError, match="response_schema"):
        BatchSpec("in", "out", "m", response_schema=["no schema"])  # type: ignore[arg-type]
