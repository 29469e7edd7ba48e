"""Rows of every kind on real engines: responses, tools, schemas and adapters."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_arcadia.batch import BatchSpec, Endpoint, run_batch
from airflow_arcadia.batch.openai_format import RESPONSES
from tests.batch.reading import code_of, text_of
from tests.conftest import ROOT
from tests.engine.serving import TINY_ENGINE, Served, served

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

MODEL = "tiny"
ADAPTERS = ("sql", "law")
MESSAGES = [{"role": "user", "content": "Is it good?"}]
VERDICT = {
    "type": "object",
    "properties": {"verdict": {"enum": ["good", "bad"]}},
    "required": ["verdict"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "judge", "parameters": VERDICT, "strict": True}}
COMPACT = ("--structured-outputs-config", json.dumps({"backend": "xgrammar", "disable_any_whitespace": True}))
"""Without it the random model may make white space up to its length limit."""


def answer(
    worker: Served, folder: Path, rows: list[Any], name: str = "rows", **options: Any
) -> list[dict[str, Any]]:
    """The lines of the output for the rows, by a batch that is run twice: both outputs are the same."""
    source = folder / f"{name}.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    parameters = {"temperature": 0, "max_tokens": 16}
    outputs = []
    for number in range(2):
        job = BatchSpec(
            str(source),
            str(folder / f"{name}-{number}.jsonl"),
            MODEL,
            parameters,
            max_failed_fraction=1,
            endpoint_timeout_s=60,
            **options,
        )
        run_batch(job, [Endpoint(worker.url)])
        outputs.append(Path(job.output).read_bytes())
    assert outputs[0] == outputs[1]
    return [json.loads(line) for line in outputs[0].splitlines()]


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory, worker_python: str, tiny_model: str) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("rows")
    adapters = []
    for seed, name in enumerate(ADAPTERS):
        command = [worker_python, str(ROOT / "tests" / "tiny_adapter.py"), tiny_model]
        subprocess.run([*command, str(folder / name), str(seed)], check=True, timeout=100)
        adapters.append(f"{name}={folder / name}")
    words = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes", *COMPACT)
    with served(
        folder / "worker",
        worker_python,
        tiny_model,
        served_model_name=MODEL,
        lora_modules=adapters,
        extra_args=(*TINY_ENGINE, *words),
    ) as running:
        yield running


def test_responses_are_answered(worker: Served, tmp_path: Path):
    rows = [
        {"custom_id": "a", "method": "POST", "url": RESPONSES, "body": {"input": "Say it."}},
        {"url": RESPONSES, "input": [{"role": "user", "content": "Say it."}], "max_output_tokens": 3},
    ]
    first, second = answer(worker, tmp_path, rows)
    assert (first["custom_id"], first["response"]["body"]["object"]) == ("a", "response")
    assert first["response"]["body"]["usage"]["output_tokens"] <= 16
    assert second["response"]["body"]["usage"]["output_tokens"] <= 3


def test_tools_are_called(worker: Served, tmp_path: Path):
    named = {"type": "function", "function": {"name": "judge"}}
    common = {"messages": MESSAGES, "tools": [TOOL], "parallel_tool_calls": False, "max_tokens": 300}
    common["frequency_penalty"] = 2  # COMPACT does not hold for arguments
    rows = [{**common, "tool_choice": choice} for choice in (named, "required")]
    for line in answer(worker, tmp_path, rows):
        [call] = line["response"]["body"]["choices"][0]["message"]["tool_calls"]
        assert call["function"]["name"] == "judge"
        assert json.loads(call["function"]["arguments"])["verdict"] in {"good", "bad"}
        assert call["id"].startswith("call_")


def test_answers_fit_the_jobs_schema_or_are_error_rows(worker: Served, tmp_path: Path):
    rows = [
        {"messages": MESSAGES, "max_tokens": 100},
        {"messages": MESSAGES, "max_tokens": 2},
        {"prompt": "Is it?", "max_tokens": 100},
    ]
    lines = answer(worker, tmp_path, rows, response_schema=VERDICT)
    assert [code_of(line) for line in lines] == [None, "invalid_output", None]
    assert all(json.loads(text_of(lines[row]))["verdict"] in {"good", "bad"} for row in (0, 2))
    assert "length limit" in lines[1]["error"]["message"]


def test_rows_name_adapters(worker: Served, tmp_path: Path):
    rows = [{"prompt": "def add(", "model": model} for model in ADAPTERS * 3]
    lines = answer(worker, tmp_path, [*rows, {"prompt": "def add(", "model": "unknown"}])
    assert code_of(lines[-1]) == "model_not_found"
    # Not in the same batch: beside an adapter's rows, vLLM on CPUs answers those of the base model with it.
    rows.append({"prompt": "def add(", "model": MODEL})
    lines[-1:] = answer(worker, tmp_path, rows[-1:], name="base")
    texts: dict[str, set[str]] = {}
    for row, line in zip(rows, lines, strict=True):
        assert line["response"]["body"]["model"] == row["model"]
        texts.setdefault(row["model"], set()).add(text_of(line))
    assert [len(found) for found in texts.values()] == [1, 1, 1]
    assert len(set.union(*texts.values())) == 3


def test_without_a_model_the_one_that_the_adapters_are_of_is_taken(worker: Served, tmp_path: Path):
    (tmp_path / "in.jsonl").write_text('{"prompt": "def add("}\n')
    job = BatchSpec(str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl"), "", {"max_tokens": 2})
    assert run_batch(job, [Endpoint(worker.url)]).model == MODEL
