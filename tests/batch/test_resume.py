"""Whatever is killed, wherever: every row is answered once, and the files are the same."""

import asyncio
import json
import random
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from airflow_arcadia.batch import BatchSpec, Endpoint, check_input, run_batch_async
from airflow_arcadia.batch.output.job import Superseded
from airflow_arcadia.batch.output.segments import FAILED, read_footer
from airflow_arcadia.exceptions import BatchError, BatchInputError
from tests.batch.fake_engine import FakeEngine
from tests.batch.forking import CONTEXT, run_command
from tests.batch.reading import answers, codes, folder_of, stopped_after, text_of, until

Write = Callable[..., str]


def spec(input: str, output: str, **options: Any) -> BatchSpec:
    defaults = {"segment_seconds": 0.05, "retry_base_s": 0.01, "ordering": "input"}
    return BatchSpec(input, output, "tiny", **{**defaults, **options})


def some_rows(count: int) -> list[Any]:
    """Answered, refused, malformed and duplicate ones."""
    rows: list[Any] = [{"custom_id": f"id-{row % 40}", "prompt": f"row {row}"} for row in range(count)]
    rows[5] = "{"
    rows[7] = {"prompt": "w " * 100}
    rows[count // 2] = {"nothing": 1}
    return rows


def parts_of(output: str) -> Path:
    path = Path(output)
    return path.with_name(f".{path.name}.parts")


def committed(output: str) -> set[int]:
    """Row numbers in segments that are whole."""
    footers = [read_footer(path) for path in parts_of(output).glob("seg-*")]
    return {row & (FAILED - 1) for footer in footers if footer for row in footer.rows}


@pytest.mark.parametrize("ordering", ["input", "prefix"])
@pytest.mark.slow
async def test_files_are_byte_identical_after_any_number_of_kills(
    engine: FakeEngine, write_rows: Write, tmp_path: Path, ordering: str
):
    """The runner is killed with SIGKILL and the engine's connections are cut, at random moments."""
    path = write_rows(*some_rows(360))
    calm, output = str(tmp_path / "calm.jsonl"), str(tmp_path / "killed.jsonl")
    await run_batch_async(spec(path, calm, ordering=ordering), [Endpoint(engine.url)])
    engine.seen.clear()
    engine.delay = 0.02
    rng = random.Random(7)
    command = [
        *("run", "--quiet", "--endpoint", engine.url),
        *("--input", path, "--output", output, "--ordering", ordering),
        *("--segment-seconds", "0.05", "--max-in-flight", "16"),
    ]
    kills = 0
    sent_before: dict[str, int] = {}
    while not Path(output).exists():
        process = CONTEXT.Process(target=run_command, args=(command,))
        process.start()
        target = engine.seen.total() + rng.randrange(10, 60)
        await until(lambda target=target, process=process: _reached(engine, process, target))
        if process.is_alive():
            if kills % 3 == 1:
                await engine.stop()
                await engine.start()
            process.kill()
            kills += 1
        await until(lambda process=process: not process.is_alive())
        for row, count in sent_before.items():
            assert engine.seen[row] == count, "a committed row was sent again"
        sent_before = {f"row {row}": engine.seen[f"row {row}"] for row in committed(output)}
    assert kills >= 5
    for suffix in ("", ".errors.jsonl"):
        assert Path(output + suffix).read_bytes() == Path(calm + suffix).read_bytes()
    assert len(answers(output)) == 360


def _reached(engine: FakeEngine, process: BaseProcess, target: int) -> bool:
    return not process.is_alive() or engine.seen.total() >= target


async def test_an_attempt_thought_dead_ends_and_its_successor_finishes(
    engine: FakeEngine, write_rows: Write, output: str
):
    engine.delay = 0.02
    rows = [{"prompt": f"row {row}"} for row in range(200)]
    options = spec(write_rows(*rows), output, max_in_flight=4)
    first = asyncio.create_task(run_batch_async(options, [Endpoint(engine.url)]))
    await until(lambda: engine.seen.total() > 20)
    second = asyncio.create_task(run_batch_async(options, [Endpoint(engine.url)]))
    with pytest.raises(Superseded, match="Attempt 1"):
        await first
    assert (await second).attempts == 2
    assert [text_of(row) for row in answers(output)] == [f"ROW {row}" for row in range(200)]


async def test_a_torn_segment_is_answered_again(engine: FakeEngine, write_rows: Write, output: str):
    engine.delay = 0.01
    rows = [{"prompt": f"row {row}"} for row in range(200)]
    options = spec(write_rows(*rows), output, max_in_flight=8)
    await stopped_after(options, engine, 100)
    segment = min(parts_of(output).glob("seg-*"))
    segment.write_bytes(segment.read_bytes()[:-10])
    assert (await run_batch_async(options, [Endpoint(engine.url)])).ok == 200
    assert [text_of(row) for row in answers(output)] == [f"ROW {row}" for row in range(200)]


async def test_a_segment_damaged_in_its_middle_is_answered_again(
    engine: FakeEngine, write_rows: Write, output: str
):
    engine.delay = 0.01
    rows = [{"prompt": f"row {row}"} for row in range(200)]
    options = spec(write_rows(*rows), output, max_in_flight=8)
    await stopped_after(options, engine, 100)
    segment = min(parts_of(output).glob("seg-*"))
    data = bytearray(segment.read_bytes())
    data[30] ^= 0xFF
    segment.write_bytes(data)
    summary = await run_batch_async(options, [Endpoint(engine.url)])
    assert (summary.ok, summary.failed) == (200, 0)
    assert [text_of(row) for row in answers(output)] == [f"ROW {row}" for row in range(200)]


@pytest.mark.parametrize("change", ["input", "model", "parameters"])
async def test_a_change_is_not_mixed_into_old_answers(
    engine: FakeEngine, write_rows: Write, output: str, change: str
):
    engine.delay = 0.01
    engine.models.append("other")
    rows = [{"prompt": f"row {row}"} for row in range(100)]
    before = spec(write_rows(*rows), output, max_in_flight=4)
    await stopped_after(before, engine, 30)

    def changed(**options: Any) -> BatchSpec:
        if change == "input":
            options["input"] = write_rows(*rows[:-1], {"prompt": "another"})
        elif change == "model":
            options["model"] = "other"
        else:
            options["parameters"] = {"seed": 1}
        return BatchSpec(**{**before.to_dict(), **options})

    for _ in range(2):
        with pytest.raises(BatchInputError, match=f"partly answered for another {change}"):
            await run_batch_async(changed(), [Endpoint(engine.url)])
    with pytest.raises(BatchInputError, match=f"another {change}"):
        check_input(changed())
    engine.seen.clear()
    summary = await run_batch_async(changed(on_change="restart"), [Endpoint(engine.url)])
    assert (summary.ok, summary.resumed_rows) == (100, 0)
    assert engine.seen.total() == 100
    with pytest.raises(BatchInputError, match=f"was answered for another {change}"):
        await run_batch_async(
            before if change != "input" else spec(write_rows(*rows), output), [Endpoint(engine.url)]
        )


async def test_touching_the_input_changes_nothing(engine: FakeEngine, write_rows: Write, output: str):
    engine.delay = 0.01
    options = spec(write_rows(*[{"prompt": f"row {row}"} for row in range(60)]), output, max_in_flight=4)
    await stopped_after(options, engine, 30)
    Path(options.input).touch()
    assert (await run_batch_async(options, [Endpoint(engine.url)])).resumed_rows > 0


async def test_an_input_that_changes_meanwhile_is_said(engine: FakeEngine, write_rows: Write, output: str):
    engine.held = asyncio.Event()
    rows = [{"prompt": f"row {row}"} for row in range(20)]
    running = asyncio.create_task(run_batch_async(spec(write_rows(*rows), output), [Endpoint(engine.url)]))
    await until(lambda: engine.running == 20)
    write_rows(*rows, {"prompt": "one more"})
    engine.held.set()
    with pytest.raises(BatchInputError, match="changed while its rows were answered"):
        await running
    assert not Path(output).exists()


async def test_only_the_failed_rows_are_sent_again(engine: FakeEngine, write_rows: Write, output: str):
    rows = [{"prompt": f"row {row}"} for row in range(20)]
    engine.failing = {"row 3": [500] * 2, "row 9": [500] * 4}
    options = spec(write_rows(*rows), output, max_attempts=2)
    first = await run_batch_async(options, [Endpoint(engine.url)])
    assert (first.ok, first.failed) == (18, 2)
    engine.seen.clear()
    again = BatchSpec(**{**options.to_dict(), "retry_failed_only": True})
    second = await run_batch_async(again, [Endpoint(engine.url)])
    assert engine.seen == {"row 3": 1, "row 9": 2}
    assert (second.ok, second.failed, second.completion_tokens) == (19, 1, 19 * 3)
    assert [row["custom_id"] for row in answers(f"{output}.errors.jsonl")] == ["row-10"]
    third = await run_batch_async(again, [Endpoint(engine.url)])
    assert third.failed == 0
    assert [text_of(row) for row in answers(output)] == [f"ROW {row}" for row in range(20)]
    assert folder_of(output) == ["answers.jsonl", "answers.jsonl.summary.json"]
    assert await run_batch_async(again, [Endpoint(engine.url)]) == third


async def test_failed_rows_of_an_unfinished_batch_can_be_sent_again(
    engine: FakeEngine, write_rows: Write, output: str
):
    engine.failing = {"row 0": [500] * 2}
    rows = [{"prompt": f"row {row}"} for row in range(10)]
    options = spec(write_rows(*rows), output, max_failed_rows=0, max_attempts=2)
    with pytest.raises(BatchError, match="more than the 0 allowed"):
        await run_batch_async(options, [Endpoint(engine.url)])
    # What failed stays failed, and the limit holds, until it is asked for.
    again = BatchSpec(**{**options.to_dict(), "retry_failed_only": True})
    assert (await run_batch_async(again, [Endpoint(engine.url)])).ok == 10


async def test_segments_can_be_kept(engine: FakeEngine, write_rows: Write, output: str):
    options = spec(write_rows({"prompt": "one"}), output, keep_segments=True)
    first = await run_batch_async(options, [Endpoint(engine.url)])
    assert committed(output) == {0}
    assert await run_batch_async(options, [Endpoint(engine.url)]) == first
    assert engine.seen["one"] == 1


async def test_an_end_between_output_and_summary_is_made_good(
    engine: FakeEngine, write_rows: Write, output: str
):
    options = spec(write_rows({"prompt": "one"}), output, keep_segments=True)
    await run_batch_async(options, [Endpoint(engine.url)])
    summary = Path(f"{output}.summary.json")
    # The manifest is removed after the summary appeared, so this is what was there just before it.
    (parts_of(output) / "job.json").write_text(json.dumps(json.loads(summary.read_text())["job"]))
    summary.unlink()
    assert (await run_batch_async(options, [Endpoint(engine.url)])).ok == 1
    assert engine.seen["one"] == 1


@pytest.mark.parametrize(("segment_rows", "least"), [(50, 300), (400, 0)])
async def test_a_full_disk_is_said_and_loses_nothing(
    engine: FakeEngine, write_rows: Write, output: str, segment_rows: int, least: int
):
    """RLIMIT_FSIZE makes the kernel refuse more bytes in a file, as a full disk does."""
    rows = [{"prompt": f"row {row} " + "x" * 300} for row in range(400)]
    options = spec(
        write_rows(*rows), output, segment_rows=segment_rows, segment_seconds=60.0, max_in_flight=16
    )
    script = (
        "import json, resource, sys\n"
        "from airflow_arcadia.batch import BatchSpec, Endpoint, run_batch\n"
        "from airflow_arcadia.exceptions import BatchError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))\n"
        "try:\n"
        "    run_batch(BatchSpec(**json.loads(sys.argv[1])), [Endpoint(sys.argv[2])])\n"
        "except BatchError as error:\n"
        "    print(error)\n"
    )

    async def run(limit: int) -> str:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", script, json.dumps(options.to_dict()), engine.url, str(limit)),
            stdout=subprocess.PIPE,
        )
        out, _ = await process.communicate()
        return out.decode()

    # Enough for short segments and not for the output; not even enough for one long segment.
    said = await run(100_000)
    assert "is full" in said
    held = len(committed(output))
    assert least <= held <= 400
    assert f"{held} rows are committed" in said
    assert not Path(output).exists()
    engine.seen.clear()
    summary = await run_batch_async(options, [Endpoint(engine.url)])
    assert summary.ok == 400
    assert engine.seen.total() == 400 - held
    assert [text_of(row) for row in answers(output)] == [row["prompt"].upper() for row in rows]


async def test_cancelling_commits_what_is_answered(engine: FakeEngine, write_rows: Write, output: str):
    engine.delay = 0.02
    rows = [{"prompt": f"row {row}"} for row in range(100)]
    options = spec(write_rows(*rows), output, max_in_flight=4, segment_seconds=60.0)
    running = asyncio.create_task(run_batch_async(options, [Endpoint(engine.url)]))
    await until(lambda: engine.seen.total() > 30)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert len(committed(output)) >= 20


async def test_bad_rows_are_the_same_in_every_attempt(engine: FakeEngine, write_rows: Write, output: str):
    await run_batch_async(spec(write_rows(*some_rows(60)), output), [Endpoint(engine.url)])
    found = codes(output)
    assert (found[5], found[7], found[30]) == ("invalid_json", "context_length_exceeded", "no_prompt")
    assert sum(code is not None for code in found) == 3
