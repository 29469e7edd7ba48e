"""One folder holds one job: no answer to another input, model or parameters gets into a finished output."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from airflow_arcadia.batch import BatchSpec, Endpoint, check_input, run_batch_async
from airflow_arcadia.batch.input.source import InputChanged
from airflow_arcadia.batch.output.job import Superseded
from airflow_arcadia.exceptions import BatchError, BatchInputError
from tests.batch.fake_engine import FakeEngine, serving
from tests.batch.reading import answers, stopped_after, text_of, until

Write = Callable[..., str]
ROWS = [{"prompt": f"row {row:03d}"} for row in range(100)]


class HotEngine(FakeEngine):
    """Its answers tell the temperature they were made with."""

    def _body(self, path: str, body: dict[str, Any], text: str, words: int) -> dict[str, Any]:
        return super()._body(path, body, f"{text} at {body.get('temperature')}", words)


def spec(input: str, output: str, **options: Any) -> BatchSpec:
    defaults = {"segment_seconds": 0.02, "max_in_flight": 4, "ordering": "input"}
    return BatchSpec(input, output, **{"model": "tiny", **defaults, **options})


def texts(output: str) -> list[str]:
    return [text_of(row) for row in answers(output)]


def expected(rows: list[dict[str, Any]] = ROWS) -> list[str]:
    return [row["prompt"].upper() for row in rows]


async def stopped_half_way(job: BatchSpec, engine: FakeEngine) -> None:
    await stopped_after(job, engine, 40)


@pytest.mark.parametrize("memory", [False, True], ids=["local", "memory"])
async def test_a_restart_shares_nothing_with_the_attempt_it_replaces(
    write_rows: Write, output: str, memory: bool, request: pytest.FixtureRequest
):
    """The replaced attempt is still running, and both have answers to commit."""
    place = f"memory://{request.node.name}/o.jsonl" if memory else output
    async with serving(HotEngine()) as engine:
        engine.delay = 0.01
        before = spec(write_rows(*ROWS), place, parameters={"temperature": 1})
        first = asyncio.create_task(run_batch_async(before, [Endpoint(engine.url)]))
        await until(lambda: engine.seen.total() > 20)
        after = BatchSpec(**{**before.to_dict(), "parameters": {"temperature": 0}, "on_change": "restart"})
        summary = await run_batch_async(after, [Endpoint(engine.url)])
        with pytest.raises(Superseded):
            await first
    assert (summary.ok, summary.attempts, summary.resumed_rows) == (100, 1, 0)
    if not memory:
        assert texts(place) == [f"{row['prompt'].upper()} AT 0" for row in ROWS]


async def test_an_attempt_that_sleeps_through_a_finished_batch_cannot_commit_to_the_next_one(
    write_rows: Write, output: str
):
    """The folder was removed in between, so that the next attempt has the same token again."""
    async with serving(HotEngine()) as engine, serving(HotEngine()) as frozen:
        frozen.held = asyncio.Event()
        old = spec(write_rows(*ROWS), output, parameters={"temperature": 1})
        sleeper = asyncio.create_task(run_batch_async(old, [Endpoint(frozen.url)]))
        await until(lambda: frozen.running == 4)
        await run_batch_async(old, [Endpoint(engine.url)])
        engine.delay = 0.01
        new = BatchSpec(**{**old.to_dict(), "parameters": {"temperature": 0}, "overwrite": True})
        engine.seen.clear()
        latest = asyncio.create_task(run_batch_async(new, [Endpoint(engine.url)]))
        await until(lambda: engine.seen.total() > 20)
        frozen.held.set()
        with pytest.raises(Superseded):
            await sleeper
        await latest
    assert texts(output) == [f"{row['prompt'].upper()} AT 0" for row in ROWS]


@pytest.mark.parametrize("end", [".csv", ".jsonl"])
async def test_another_input_in_between_does_not_lend_its_index(
    engine: FakeEngine, tmp_path: Path, output: str, end: str
):
    def write(name: str, word: str) -> str:
        rows = [f"{word} {row}" for row in range(60)]
        lines = ["prompt", *rows] if end == ".csv" else [json.dumps({"prompt": row}) for row in rows]
        (tmp_path / f"{name}{end}").write_text("\n".join(lines) + "\n")
        return str(tmp_path / f"{name}{end}")

    job = spec(write("a", "the first input's row"), output)
    await stopped_half_way(job, engine)
    options = {"input": write("b", "another's"), "on_change": "restart", "endpoint_timeout_s": 0.1}
    with pytest.raises(BatchError, match="No endpoint"):
        await run_batch_async(BatchSpec(**{**job.to_dict(), **options}), [Endpoint("http://127.0.0.1:9")])
    summary = await run_batch_async(job, [Endpoint(engine.url)])
    assert (summary.ok, summary.failed) == (60, 0)
    assert texts(output) == [f"THE FIRST INPUT'S ROW {row}" for row in range(60)]


@pytest.mark.parametrize("disguised", [False, True], ids=["written", "with its old time"])
async def test_an_input_that_changes_for_a_moment_leaves_no_wrong_answer(
    engine: FakeEngine, write_rows: Write, output: str, disguised: bool
):
    engine.held = asyncio.Event()
    job = spec(write_rows(*ROWS), output)
    path = Path(job.input)
    content, stat = path.read_bytes(), path.stat()
    running = asyncio.create_task(run_batch_async(job, [Endpoint(engine.url)]))
    await until(lambda: engine.running == 4)
    # In place, as long as before: every row is another one, where the index says.
    path.write_bytes(content.replace(b"row", b"RAW"))
    if disguised:
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    engine.held.set()
    with pytest.raises(InputChanged, match="changed while its rows were answered"):
        await running
    engine.held = None
    path.write_bytes(content)
    assert (await run_batch_async(job, [Endpoint(engine.url)])).ok == 100
    assert texts(output) == expected()
    assert not any("RAW" in prompt for prompt in engine.seen)


async def test_a_changed_input_ends_the_batch_at_its_next_commit(
    engine: FakeEngine, write_rows: Write, output: str
):
    engine.delay = 0.02
    job = spec(write_rows(*ROWS), output)
    running = asyncio.create_task(run_batch_async(job, [Endpoint(engine.url)]))
    await until(lambda: engine.seen.total() > 8)
    os.utime(job.input)
    with pytest.raises(InputChanged):
        await running
    assert engine.seen.total() < 60


async def test_the_same_content_exported_in_place_is_gone_on_with(
    engine: FakeEngine, write_rows: Write, output: str
):
    job = spec(write_rows(*ROWS), output)
    await stopped_half_way(job, engine)
    write_rows(*ROWS)
    summary = await run_batch_async(job, [Endpoint(engine.url)])
    assert summary.resumed_rows >= 30
    assert texts(output) == expected()


async def test_a_finished_batch_is_looked_at_again(engine: FakeEngine, write_rows: Write, output: str):
    job = spec(write_rows(*ROWS), output)
    first = await run_batch_async(job, [Endpoint(engine.url)])
    Path(output).unlink()
    assert (await run_batch_async(job, [Endpoint(engine.url)])).ok == 100
    assert engine.seen.total() == 200
    again = BatchSpec(**{**job.to_dict(), "overwrite": True})
    assert (await run_batch_async(again, [Endpoint(engine.url)])).rows == first.rows
    assert engine.seen.total() == 300
    write_rows(*ROWS[:1])
    with pytest.raises(BatchInputError, match="was answered for another input"):
        await run_batch_async(job, [Endpoint(engine.url)])


@pytest.mark.parametrize("memory", [False, True], ids=["local", "memory"])
async def test_an_attempt_whose_endpoint_comes_up_after_another_finished_sends_nothing(
    engine: FakeEngine, write_rows: Write, output: str, memory: bool, request: pytest.FixtureRequest
):
    place = f"memory://{request.node.name}/o.jsonl" if memory else output
    job = spec(write_rows(*ROWS), place)
    async with serving() as late:
        await late.stop()
        waiting = asyncio.create_task(run_batch_async(job, [Endpoint(late.url)]))
        await asyncio.sleep(0)
        parts = Path(output).with_name(".answers.jsonl.parts")
        if not memory:
            await until(lambda: any(parts.glob("index-*")))
        first = await run_batch_async(job, [Endpoint(engine.url)])
        await late.start()
        assert await waiting == first
        assert late.seen.total() == 0


async def test_two_that_begin_together_end_with_one_right_output(
    engine: FakeEngine, write_rows: Write, output: str
):
    for number in range(6):
        job = spec(write_rows(*ROWS), f"{output}-{number}", max_in_flight=32)
        both = [run_batch_async(job, [Endpoint(engine.url)]) for _ in range(2)]
        ended = await asyncio.gather(*both, return_exceptions=True)
        assert texts(job.output) == expected()
        assert all(getattr(one, "ok", 100) == 100 for one in ended)
        failed = [one for one in ended if isinstance(one, BaseException)]
        assert all(isinstance(one, BatchError) for one in failed), failed


async def test_another_served_model_is_a_change_where_none_is_named(
    engine: FakeEngine, write_rows: Write, output: str
):
    job = spec(write_rows(*ROWS), output, model="")
    first = await run_batch_async(job, [Endpoint(engine.url)])
    assert await run_batch_async(job, [Endpoint(engine.url)]) == first
    assert await run_batch_async(job, [Endpoint("http://127.0.0.1:9")]) == first, "nothing to compare with"
    engine.models = ["another"]
    with pytest.raises(BatchInputError, match="was answered for another model"):
        await run_batch_async(job, [Endpoint(engine.url)])
    restarted = await run_batch_async(
        BatchSpec(**{**job.to_dict(), "on_change": "restart"}), [Endpoint(engine.url)]
    )
    assert restarted.model == "another"


async def test_a_batch_goes_on_with_a_worker_that_serves_the_same_model_under_another_name(
    engine: FakeEngine, write_rows: Write, output: str
):
    """As each of Arcadia's Workers does, which are named by their uid."""
    job = spec(write_rows(*ROWS), output, model="tiny", model_identity="ns/model", segment_rows=10)
    await stopped_half_way(job, engine)
    engine.models = ["another"]
    job = replace(job, model="another")
    summary = await run_batch_async(job, [Endpoint(engine.url)])
    assert (summary.ok, summary.attempts, texts(output)) == (100, 2, expected())
    assert summary.resumed_rows >= 10
    assert check_input(job) == 100
    assert await run_batch_async(replace(job, model="a third"), [Endpoint(engine.url)]) == summary
    with pytest.raises(BatchInputError, match="was answered for another model"):
        await run_batch_async(replace(job, model_identity="ns/other"), [Endpoint(engine.url)])


async def test_a_manifest_that_outlived_its_folder_is_ignored(
    engine: FakeEngine, write_rows: Write, output: str
):
    """An attempt may write it in the moment in which another one finishes and removes the folder."""
    job = spec(write_rows(*ROWS), output)
    first = await run_batch_async(job, [Endpoint(engine.url)])
    parts = Path(output).with_name(".answers.jsonl.parts")
    parts.mkdir()
    manifest = {**json.loads(Path(f"{output}.summary.json").read_text())["job"], "epoch": "another"}
    manifest["identity"]["parameters"] = "of another batch"
    (parts / "job.json").write_text(json.dumps(manifest))
    assert check_input(job) == 100
    assert await run_batch_async(job, [Endpoint(engine.url)]) == first


async def test_overwriting_covers_an_unfinished_output(engine: FakeEngine, write_rows: Write, output: str):
    job = spec(write_rows(*ROWS), output)
    await stopped_half_way(job, engine)
    other = BatchSpec(**{**job.to_dict(), "parameters": {"seed": 1}, "overwrite": True})
    assert check_input(other) == 100
    summary = await run_batch_async(other, [Endpoint(engine.url)])
    assert (summary.ok, summary.resumed_rows) == (100, 0)


@pytest.mark.parametrize("end", [".errors.jsonl", ".summary.json"])
async def test_a_file_of_somebody_else_beside_the_output_is_kept(
    engine: FakeEngine, write_rows: Write, output: str, end: str
):
    Path(output).parent.mkdir()
    foreign = Path(f"{output}{end}")
    foreign.write_text("a file of someone else")
    job = spec(write_rows({"prompt": "x"}), output)
    with pytest.raises(BatchInputError, match=f"{foreign.name} exists and is not this batch's"):
        check_input(job)
    with pytest.raises(BatchInputError, match=foreign.name):
        await run_batch_async(job, [Endpoint(engine.url)])
    assert foreign.read_text() == "a file of someone else"
    over = BatchSpec(**{**job.to_dict(), "overwrite": True})
    assert (await run_batch_async(over, [Endpoint(engine.url)])).ok == 1


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    ("input", "output"),
    [("in.jsonl", "in.jsonl"), ("in.jsonl", "link.jsonl"), ("o.errors.jsonl", "o"), ("o.summary.json", "o")],
)
def test_the_input_is_never_replaced(
    write_rows: Write, tmp_path: Path, input: str, output: str, overwrite: bool
):
    path = write_rows({"prompt": "x"}, name=input)
    (tmp_path / "link.jsonl").symlink_to(path)
    with pytest.raises(BatchInputError, match="would be replaced"):
        check_input(BatchSpec(path, str(tmp_path / output), "m", overwrite=overwrite))


async def test_a_link_as_output_stays_one(engine: FakeEngine, write_rows: Write, tmp_path: Path):
    (tmp_path / "disk").mkdir()
    link = tmp_path / "answers.jsonl"
    link.symlink_to(tmp_path / "disk" / "real.jsonl")
    await run_batch_async(spec(write_rows({"prompt": "x"}), str(link)), [Endpoint(engine.url)])
    assert link.is_symlink()
    assert texts(str(link)) == ["X"]


async def test_failed_rows_of_what_is_not_an_output_cannot_be_sent_again(
    engine: FakeEngine, write_rows: Write, output: str
):
    engine.failing = {"row 003": [400]}
    job = spec(write_rows(*ROWS), output)
    await run_batch_async(job, [Endpoint(engine.url)])
    Path(output).write_text("no JSON\n" * 100)
    again = BatchSpec(**{**job.to_dict(), "retry_failed_only": True})
    with pytest.raises(BatchInputError, match="line 1 is not one of a batch's output"):
        await run_batch_async(again, [Endpoint(engine.url)])
    assert Path(output).read_text() == "no JSON\n" * 100
