"""Several rows in one request give the same lines as each alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airflow_arcadia.batch import BatchSpec, Endpoint, run_batch_async
from airflow_arcadia.batch.openai_format import CHAT, COMPLETIONS, Request
from airflow_arcadia.batch.transport.prompt_lists import group_key, split_answer
from tests.batch.fake_engine import FakeEngine
from tests.batch.reading import answers, codes, text_of

Write = Callable[..., str]


def completion(**body: Any) -> Request:
    return Request("id", COMPLETIONS, {"prompt": "x", "model": "m", **body})


def test_rows_that_differ_in_more_than_the_prompt_go_apart():
    assert group_key(completion(prompt="a", seed=1)) == group_key(completion(seed=1, prompt="b"))
    assert group_key(completion(seed=1)) != group_key(completion(seed=2))
    assert group_key(completion(model="a")) != group_key(completion(model="b"))


@pytest.mark.parametrize(
    "body", [{"prompt": ["a"]}, {"prompt": [1, 2]}, {"n": 2}, {"return_token_ids": True}]
)
def test_what_has_no_single_choice_goes_alone(body: dict[str, Any]):
    assert group_key(completion(**body)) is None


def test_only_completions_can_share_a_request():
    assert group_key(Request("id", CHAT, {"messages": []})) is None


@pytest.mark.parametrize(
    "indexes", [[0], [0, 0], [0, 2], [0, "1"], [0, 1, 2]], ids=["few", "twice", "beyond", "text", "many"]
)
def test_an_answer_that_does_not_fit_is_not_split(indexes: list[Any]):
    tokens = {"token_ids": [1], "prompt_token_ids": [1]}
    choices = [{"index": index, **tokens} for index in indexes]
    assert split_answer({"choices": choices}, 2) is None
    assert split_answer({"choices": [{"index": 0}, {"index": 1}]}, 2) is None


async def test_lines_are_the_same_whether_rows_shared_a_request_or_not(
    engine: FakeEngine, write_rows: Write, tmp_path: Path
):
    rows = [{"prompt": f"row {'x ' * (row % 5)}{row}", "seed": row // 70} for row in range(200)]
    path = write_rows(*rows)
    written = []
    for most in (1, 8):
        output = str(tmp_path / f"out-{most}.jsonl")
        summary = await run_batch_async(
            BatchSpec(path, output, "tiny", rows_per_request=most, ordering="input"), [Endpoint(engine.url)]
        )
        assert summary.completion_tokens == 600
        written.append(Path(output).read_bytes())
        assert engine.most_prompts == (0 if most == 1 else 8)
    assert written[0] == written[1]
    assert len(engine.bodies) < 200 + 60


async def test_bad_rows_do_not_spoil_the_others(engine: FakeEngine, write_rows: Write, output: str):
    rows = [{"prompt": "w " * 100 if row == 5 else f"row {row}"} for row in range(20)]
    engine.failing = {"row 7": [500] * 9}
    spec = BatchSpec(write_rows(*rows), output, "tiny", retry_base_s=0.01)
    summary = await run_batch_async(spec, [Endpoint(engine.url)])
    assert (summary.ok, summary.failed) == (18, 2)
    assert (codes(output)[5], codes(output)[7]) == ("context_length_exceeded", "server_error")


async def test_a_server_that_takes_no_lists_gets_single_rows(
    engine: FakeEngine, write_rows: Write, output: str
):
    engine.takes_lists = False
    rows = [{"prompt": f"row {row}"} for row in range(50)]
    await run_batch_async(BatchSpec(write_rows(*rows), output, "tiny"), [Endpoint(engine.url)])
    assert [text_of(row) for row in answers(output)] == [f"ROW {row}" for row in range(50)]


async def test_rows_in_flight_are_bounded_however_they_are_grouped(
    engine: FakeEngine, write_rows: Write, output: str
):
    engine.delay = 0.01
    rows = [{"prompt": f"row {row}", "seed": row // 20} for row in range(200)]
    spec = BatchSpec(write_rows(*rows), output, "tiny", max_in_flight=20, ordering="input")
    await run_batch_async(spec, [Endpoint(engine.url)])
    # Each request of several rows holds one of the engine's places while its rows are answered in turn.
    assert engine.most_running <= 20
    assert len(answers(output)) == 200
