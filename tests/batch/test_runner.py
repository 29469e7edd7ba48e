"""A batch from end to end, against a server."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from airflow_arcadia.batch import BatchSpec, Endpoint, Progress, run_batch, run_batch_async
from airflow_arcadia.exceptions import BatchError, BatchInputError
from tests.batch.fake_engine import FakeEngine, serving
from tests.batch.reading import answers, codes, folder_of, stopped_after, summary_of, text_of, until

Write = Callable[..., str]


def spec(input: str, output: str, **options: Any) -> BatchSpec:
    defaults = {"retry_base_s": 0.01, "endpoint_timeout_s": 20.0}
    return BatchSpec(input, output, "tiny", **{**defaults, **options})


async def test_rows_of_every_form_are_answered_in_the_inputs_order(
    engine: FakeEngine, write_rows: Write, output: str
):
    rows = [
        {"prompt": "one"},
        {"custom_id": "chat", "messages": [{"role": "user", "content": "two"}]},
        {"input": "three"},
        {"custom_id": "b", "method": "POST", "url": "/v1/completions", "body": {"prompt": "four"}},
    ]
    summary = await run_batch_async(spec(write_rows(*rows), output), [Endpoint(engine.url)])
    found = answers(output)
    assert [row["custom_id"] for row in found] == ["row-1", "chat", "row-3", "b"]
    assert [text_of(found[index]) for index in (0, 1, 3)] == ["ONE", "TWO", "FOUR"]
    assert found[2]["response"]["body"]["data"][0]["embedding"] == [5.0, 1.0]
    assert (summary.rows, summary.ok, summary.failed) == (4, 4, 0)
    assert summary.completion_tokens == 12
    assert summary_of(output)["ok"] == 4
    assert folder_of(output) == ["answers.jsonl", "answers.jsonl.summary.json"]


async def test_a_bad_row_becomes_an_error_row(engine: FakeEngine, write_rows: Write, output: str):
    rows = [{"prompt": "one"}, "{no json", {"nothing": 1}, {"prompt": "w " * 65}, {"prompt": "two"}]
    summary = await run_batch_async(spec(write_rows(*rows), output), [Endpoint(engine.url)])
    assert codes(output) == [None, "invalid_json", "no_prompt", "context_length_exceeded", None]
    assert (summary.ok, summary.failed) == (2, 3)
    assert summary.errors == f"{output}.errors.jsonl"
    errors = answers(summary.errors)
    assert [row["custom_id"] for row in errors] == ["row-2", "row-3", "row-4"]


async def test_what_the_server_refused_is_kept_in_its_words(
    engine: FakeEngine, write_rows: Write, output: str
):
    rows = [{"prompt": "one"}, {"prompt": "w " * 65}]
    await run_batch_async(spec(write_rows(*rows), output), [Endpoint(engine.url)])
    refused = answers(output)[1]
    assert (refused["error"], refused["response"]["status_code"]) == (None, 400)
    assert refused["response"]["body"]["error"] == {
        "message": "This model's maximum context length is 64 tokens, not 65.",
        "type": "BadRequestError",
        "param": None,
        "code": "context_length_exceeded",
    }


async def test_duplicate_custom_ids_neither_collide_nor_overwrite(
    engine: FakeEngine, write_rows: Write, output: str
):
    rows = [{"custom_id": "same", "prompt": text} for text in ("one", "two", "two")]
    await run_batch_async(spec(write_rows(*rows), output), [Endpoint(engine.url)])
    found = answers(output)
    assert [(row["custom_id"], text_of(row)) for row in found] == [
        ("same", "ONE"),
        ("same", "TWO"),
        ("same", "TWO"),
    ]
    assert len({row["id"] for row in found}) == 3


async def test_many_rows_are_in_flight_and_no_more_than_allowed(
    engine: FakeEngine, write_rows: Write, output: str
):
    engine.held = asyncio.Event()
    rows = [{"prompt": f"row {number}"} for number in range(100)]
    running = asyncio.create_task(
        run_batch_async(spec(write_rows(*rows), output, max_in_flight=32), [Endpoint(engine.url)])
    )
    await until(lambda: engine.running == 32)
    engine.held.set()
    await running
    assert engine.most_running == 32
    assert [text_of(row) for row in answers(output)] == [f"ROW {number}" for number in range(100)]


async def test_what_fails_for_a_while_is_answered_in_the_end(
    engine: FakeEngine, write_rows: Write, output: str
):
    engine.failing = {"one": [500, 503, 0, 429], "two": [0, 0, 0]}
    rows = [{"prompt": "one"}, {"prompt": "two"}]
    summary = await run_batch_async(spec(write_rows(*rows), output), [Endpoint(engine.url)])
    assert summary.failed == 0
    assert [text_of(row) for row in answers(output)] == ["ONE", "TWO"]


async def test_a_row_that_always_fails_is_given_up_after_its_attempts(
    engine: FakeEngine, write_rows: Write, output: str
):
    engine.failing = {"one": [500] * 9}
    options = spec(write_rows({"prompt": "one"}, {"prompt": "two"}), output, max_attempts=3)
    summary = await run_batch_async(options, [Endpoint(engine.url)])
    assert codes(output) == ["server_error", None]
    assert engine.seen["one"] == 3
    assert summary.failed == 1


async def test_a_late_answer_counts_as_a_failure(engine: FakeEngine, write_rows: Write, output: str):
    engine.delays["one"] = asyncio.Event()
    rows = [{"prompt": "one"}, {"prompt": "two"}]
    options = spec(write_rows(*rows), output, max_attempts=2, request_timeout_s=0.2)
    await run_batch_async(options, [Endpoint(engine.url)])
    assert codes(output) == ["timeout", None]
    assert engine.seen["one"] == 2


async def test_too_many_failed_rows_end_the_batch(engine: FakeEngine, write_rows: Write, output: str):
    rows = [{"prompt": "one"}, *[{"nothing": 1}] * 5]
    with pytest.raises(BatchError, match="3 rows have failed, more than the 2 allowed"):
        await run_batch_async(spec(write_rows(*rows), output, max_failed_rows=2), [Endpoint(engine.url)])
    assert folder_of(output) == [".answers.jsonl.parts"]
    with pytest.raises(BatchError, match="more than the 3 allowed"):
        await run_batch_async(
            spec(write_rows(*rows), output, max_failed_fraction=0.5), [Endpoint(engine.url)]
        )


async def test_a_finished_batch_is_not_run_again(engine: FakeEngine, write_rows: Write, output: str):
    options = spec(write_rows({"prompt": "one"}), output)
    first = await run_batch_async(options, [Endpoint(engine.url)])
    assert await run_batch_async(options, [Endpoint(engine.url)]) == first
    assert await run_batch_async(options, [Endpoint("http://127.0.0.1:9")]) == first
    assert engine.seen["one"] == 1


async def test_overwrite_runs_it_again(engine: FakeEngine, write_rows: Write, output: str):
    await run_batch_async(spec(write_rows({"prompt": "one"}), output), [Endpoint(engine.url)])
    await run_batch_async(spec(write_rows({"prompt": "one"}), output, overwrite=True), [Endpoint(engine.url)])
    assert engine.seen["one"] == 2


async def test_stopping_keeps_what_is_answered_and_a_second_run_goes_on(
    engine: FakeEngine, write_rows: Write, output: str
):
    engine.delay = 0.005
    rows = [{"prompt": f"row {number}"} for number in range(300)]
    options = spec(write_rows(*rows), output, max_in_flight=4)
    await stopped_after(options, engine, 100)
    engine.delay = 0.0
    summary = await run_batch_async(options, [Endpoint(engine.url)])
    assert 90 <= summary.resumed_rows < 300
    assert summary.attempts == 2
    # Only the rows in flight at the stop were sent twice.
    assert engine.seen.total() <= 304
    assert [text_of(row) for row in answers(output)] == [f"ROW {number}" for number in range(300)]


async def test_progress_is_data_and_its_errors_do_not_end_the_batch(
    engine: FakeEngine, write_rows: Write, output: str
):
    engine.delay = 0.05
    seen: list[Progress] = []

    def on_progress(progress: Progress) -> None:
        seen.append(progress)
        raise RuntimeError("nobody listens")

    rows = [{"prompt": f"row {number}"} for number in range(20)]
    await run_batch_async(
        spec(write_rows(*rows), output, max_in_flight=2),
        [Endpoint(engine.url)],
        on_progress=on_progress,
        progress_interval_s=0.1,
    )
    assert len(seen) >= 3
    assert seen[-1].to_dict()["done"] == seen[-1].total == 20
    assert [progress.done for progress in seen] == sorted(progress.done for progress in seen)


async def test_a_server_that_comes_late_is_waited_for(write_rows: Write, output: str):
    engine = FakeEngine()
    await engine.start()
    await engine.stop()
    options = spec(write_rows({"prompt": "one"}), output)
    running = asyncio.create_task(run_batch_async(options, [Endpoint(engine.url)]))
    await asyncio.sleep(0)
    async with serving(engine):
        assert (await running).ok == 1


async def test_a_server_that_never_comes_is_named(write_rows: Write, output: str):
    options = spec(write_rows({"prompt": "one"}), output, endpoint_timeout_s=0.3)
    with pytest.raises(BatchError, match=r"No endpoint answered .*http://127.0.0.1:9"):
        await run_batch_async(options, [Endpoint("http://127.0.0.1:9")])


async def test_a_server_that_dies_costs_only_the_rows_in_flight(
    engine: FakeEngine, write_rows: Write, output: str
):
    engine.delay = 0.01
    rows = [{"prompt": f"row {number}"} for number in range(400)]
    running = asyncio.create_task(
        run_batch_async(spec(write_rows(*rows), output, max_in_flight=16), [Endpoint(engine.url)])
    )
    for reached in (80, 160, 240):
        await until(lambda least=reached: engine.seen.total() >= least)
        await engine.stop()
        await engine.start()
    summary = await running
    assert summary.failed == 0
    assert engine.seen.total() <= 400 + 3 * 16
    assert [text_of(row) for row in answers(output)] == [f"ROW {number}" for number in range(400)]


async def test_others_take_the_rows_of_a_server_that_died(write_rows: Write, output: str):
    async with serving() as first, serving() as second, serving() as third:
        for engine in (first, second, third):
            engine.delay = 0.01
        rows = [{"prompt": f"row {number}"} for number in range(400)]
        running = asyncio.create_task(
            run_batch_async(
                spec(write_rows(*rows), output, max_in_flight=8),
                [Endpoint(engine.url) for engine in (first, second, third)],
            )
        )
        await until(lambda: first.seen.total() >= 30)
        await first.stop()
        await until(lambda: second.seen.total() >= 60)
        await second.stop()
        summary = await running
        assert (summary.ok, summary.failed) == (400, 0)
        assert third.seen.total() > 100


async def test_the_key_is_sent_and_a_wrong_one_ends_the_batch(write_rows: Write, output: str):
    async with serving(FakeEngine(api_key="secret")) as engine:
        options = spec(write_rows({"prompt": "one"}), output)
        with pytest.raises(BatchInputError, match="refuses the API key"):
            await run_batch_async(options, [Endpoint(engine.url, "wrong")])
        assert (await run_batch_async(options, [Endpoint(engine.url, "secret")])).ok == 1
    assert "secret" not in repr(Endpoint(engine.url, "secret"))


async def test_a_model_nobody_serves_is_refused_before_the_first_row(
    engine: FakeEngine, write_rows: Write, output: str
):
    options = BatchSpec(write_rows({"prompt": "one"}), output, "huge")
    with pytest.raises(BatchInputError, match="does not serve 'huge' but tiny"):
        await run_batch_async(options, [Endpoint(engine.url)])
    assert not engine.seen


async def test_without_a_model_the_only_one_served_is_taken(
    engine: FakeEngine, write_rows: Write, output: str
):
    options = BatchSpec(write_rows({"prompt": "one"}), output, "")
    assert (await run_batch_async(options, [Endpoint(engine.url)])).model == "tiny"


async def test_adapters_are_not_models_to_choose_from(engine: FakeEngine, write_rows: Write, output: str):
    engine.models.append("adapter")
    engine.adapters.add("adapter")
    options = BatchSpec(write_rows({"prompt": "one"}, {"prompt": "two", "model": "adapter"}), output, "")
    for _ in range(2):  # the second time it is finished
        summary = await run_batch_async(options, [Endpoint(engine.url)])
        assert (summary.model, summary.ok) == ("tiny", 2)


async def test_a_row_may_name_another_model(engine: FakeEngine, write_rows: Write, output: str):
    engine.models.append("tiny-lora")
    rows = [{"prompt": "one", "model": "tiny-lora"}, {"prompt": "two", "model": "other"}, {"prompt": "three"}]
    await run_batch_async(spec(write_rows(*rows), output), [Endpoint(engine.url)])
    assert codes(output) == [None, "model_not_found", None]
    assert answers(output)[0]["response"]["body"]["model"] == "tiny-lora"


async def test_parameters_reach_the_engine_under_the_rows_own(
    engine: FakeEngine, write_rows: Write, output: str
):
    options = spec(
        write_rows({"prompt": "one", "seed": 1}), output, parameters={"seed": 2, "guided_regex": "a+"}
    )
    await run_batch_async(options, [Endpoint(engine.url)])
    assert engine.bodies == [{"prompt": "one", "seed": 1, "guided_regex": "a+", "model": "tiny"}]


def test_a_batch_needs_an_endpoint(write_rows: Write, output: str):
    with pytest.raises(BatchInputError, match="no endpoint"):
        run_batch(spec(write_rows({"prompt": "one"}), output), [])
