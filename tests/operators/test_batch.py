"""Batches through their operators: what is refused before it starts, and that nothing is lost."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import (
    AirflowException,
    AirflowFailException,
    AirflowSkipException,
    TaskDeferred,
)

from airflow_arcadia.batch import BatchSpec, Endpoint
from airflow_arcadia.batch.batch_api import RemoteBatches
from airflow_arcadia.batch.openai_format import is_answered
from airflow_arcadia.exceptions import ArcadiaConfigError, BatchError, LeaseError, WorkerLostError
from airflow_arcadia.hooks.arcadia import ArcadiaHook
from airflow_arcadia.lease import Lease
from airflow_arcadia.lease_store import LeaseStore
from airflow_arcadia.operators._failed_rows import with_request
from airflow_arcadia.operators.batch import (
    MAX_RESUBMISSIONS,
    PROGRESS_KEY,
    ArcadiaBatchInferenceOperator,
    ArcadiaCheckBatchInputOperator,
    _keep,
    build_spec,
)
from airflow_arcadia.worker import WorkerHandle
from tests.airflow_context import DictStore, make_context
from tests.batch.fake_engine import FakeEngine
from tests.conftest import ROOT, wait_for
from tests.operators.workers import connection, engine, make_worker, worker
from tests.statsd_listener import Listener, statsd

__all__ = ["connection", "engine", "statsd", "worker"]


def check(tmp_path: Path, content: bytes | None, **batch: Any) -> list[int]:
    if content is not None:
        (tmp_path / "in.jsonl").write_bytes(content)
    batches = [{"input": str(tmp_path / "in.jsonl"), "output": str(tmp_path / "out.jsonl"), **batch}]
    return ArcadiaCheckBatchInputOperator(task_id="check", batches=batches).execute(make_context())


async def answer(worker: Any, tmp_path: Path, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run the operator in a thread, as a task would; its summary and its context."""
    context = make_context()
    operator = batch(worker, tmp_path, **kwargs)
    return await asyncio.to_thread(operator.execute, context), context


def batch(worker: Any, tmp_path: Path, **kwargs: Any) -> ArcadiaBatchInferenceOperator:
    return ArcadiaBatchInferenceOperator(
        task_id="answer",
        worker=worker,
        input=str(tmp_path / "in.jsonl"),
        output=str(tmp_path / "out.jsonl"),
        progress_interval=0.05,
        **kwargs,
    )


def rows(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "in.jsonl"),
        (b"", "empty"),
        (b'{"prompt": "a"}\n{"prompt": "\xff"}\n', "Line 2 .* is not UTF-8"),
    ],
)
def test_input_that_cannot_be_read_is_refused_for_good(tmp_path: Path, content: bytes | None, said: str):
    with pytest.raises(AirflowFailException, match=said):
        check(tmp_path, content)
    assert not (tmp_path / "out.jsonl").exists()


def test_good_input_is_counted(tmp_path: Path):
    assert check(tmp_path, b'{"prompt": "a"}\n\n{"prompt": "b"}\n') == [2]


def test_an_output_that_exists_is_refused_for_good(tmp_path: Path):
    (tmp_path / "out.jsonl").write_text("a file of someone else")
    with pytest.raises(AirflowFailException, match="exists"):
        check(tmp_path, b'{"prompt": "a"}\n')
    assert (tmp_path / "out.jsonl").read_text() == "a file of someone else"


@pytest.mark.parametrize("no", ["False", "false", "0", "", None])
def test_overwrite_rendered_as_text_keeps_another_users_file(tmp_path: Path, no: str | None):
    (tmp_path / "out.jsonl").write_text("a file of someone else")
    for options in ({"overwrite": no}, json.dumps({"overwrite": no})):
        with pytest.raises(AirflowFailException, match="exists"):
            check(tmp_path, b'{"prompt": "a"}\n', options=options)
    assert (tmp_path / "out.jsonl").read_text() == "a file of someone else"


async def test_segment_seconds_rendered_as_text_leave_the_batch_stoppable(
    worker: dict, tmp_path: Path, engine: FakeEngine
):
    (tmp_path / "in.jsonl").write_text("".join(f'{{"prompt": "p{i}"}}\n' for i in range(300)))
    engine.delay = 0.02
    operator = ArcadiaBatchInferenceOperator(
        task_id="answer",
        worker=worker,
        input=str(tmp_path / "in.jsonl"),
        output=str(tmp_path / "out.jsonl"),
        options={"max_in_flight": 2, "segment_seconds": "10"},
    )
    running = asyncio.create_task(asyncio.to_thread(operator.execute, make_context()))
    await asyncio.to_thread(wait_for, lambda: len(engine.seen) >= 20, 20, "the first rows")
    operator.on_kill()
    with pytest.raises(BatchError, match="committed"):
        await running
    assert len(engine.seen) < 300


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"options": {"max_failed_row": 1}}, "Did you mean 'max_failed_rows'"),
        ({"options": {"overwrite": "no idea", "limit": "{{ ds }}"}}, "options.overwrite is 'no idea'"),
        ({"options": ["overwrite"]}, "options is a list, not a mapping"),
        ({"run_in": "cloud"}, "run_in is 'cloud'"),
        ({"progress_interval": 0}, "progress_interval is 0. Set it to above 0"),
        ({"batch_timeout": float("nan")}, "batch_timeout is nan, not a finite number"),
    ],
)
def test_a_literal_that_is_not_valid_is_an_error_of_the_dag(wrong: dict[str, Any], said: str):
    with pytest.raises(ArcadiaConfigError, match=said):
        ArcadiaBatchInferenceOperator(task_id="answer", worker={}, input="i", output="o", **wrong)
    if "options" in wrong:
        batch = {"input": "i", "output": "o", **wrong}
        with pytest.raises(ArcadiaConfigError, match=said):
            ArcadiaCheckBatchInputOperator(task_id="check", batches=[batch])


def test_a_template_that_renders_to_nonsense_fails_before_a_row_is_sent(tmp_path: Path):
    (tmp_path / "in.jsonl").write_text('{"prompt": "a"}\n')
    batch = {"input": str(tmp_path / "in.jsonl"), "output": str(tmp_path / "out.jsonl")}
    operator = ArcadiaCheckBatchInputOperator(
        task_id="check", batches=[{**batch, "options": {"overwrite": "{{ params.overwrite }}"}}]
    )
    operator.render_template_fields({"params": {"overwrite": "perhaps"}})
    with pytest.raises(AirflowFailException, match=r"options\.overwrite is 'perhaps', not true or false"):
        operator.execute(make_context())


async def test_bad_rows_become_error_rows_and_duplicates_are_both_answered(worker: dict, tmp_path: Path):
    lines = [
        '{"custom_id": "same", "prompt": "one"}',
        "no json",
        '{"custom_id": "empty"}',
        '{"custom_id": "same", "prompt": "two"}',
        json.dumps({"custom_id": "long", "prompt": "word " * 100}),
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(lines) + "\n")
    summary, context = await answer(worker, tmp_path)
    assert (summary["rows"], summary["ok"], summary["failed"]) == (5, 2, 3)
    found = rows(tmp_path)
    assert [is_answered(row) for row in found] == [True, False, False, True, False]
    assert [row["custom_id"] for row in found][0::3] == ["same", "same"]
    texts = [found[i]["response"]["body"]["choices"][0]["text"] for i in (0, 3)]
    assert texts[0] != texts[1]
    assert "context" in found[4]["response"]["body"]["error"]["message"]
    assert context["task_state_store"][PROGRESS_KEY]["done"] == 5


async def test_a_form_that_was_left_empty_means_the_models_default(
    worker: dict, tmp_path: Path, engine: FakeEngine
):
    (tmp_path / "in.jsonl").write_text('{"prompt": "a"}\n')
    await answer(worker, tmp_path, parameters={"max_tokens": 3, "seed": None})
    assert engine.bodies[-1]["max_tokens"] == 3
    assert "seed" not in engine.bodies[-1]


async def test_a_batch_keeps_its_lease_renewed(worker: dict, tmp_path: Path, store: LeaseStore, lease: Lease):
    (tmp_path / "in.jsonl").write_text('{"prompt": "a"}\n')
    await answer(worker, tmp_path)
    renewed = store.read(lease.name)
    assert renewed is not None
    assert renewed.renewed_at > lease.renewed_at


async def test_the_lease_is_renewed_although_progress_cannot_be_stored(
    worker: dict, tmp_path: Path, store: LeaseStore, lease: Lease
):
    class Broken(DictStore):
        def set(self, key: str, value: Any, **kwargs: Any) -> None:
            raise ConnectionError("the API server of Airflow is away")

    (tmp_path / "in.jsonl").write_text('{"prompt": "a"}\n')
    operator = ArcadiaBatchInferenceOperator(
        task_id="answer",
        worker=worker,
        input=str(tmp_path / "in.jsonl"),
        output=str(tmp_path / "out.jsonl"),
        progress_interval=0.01,
    )
    context = {**make_context(), "task_state_store": Broken()}
    await asyncio.to_thread(operator.execute, context)
    renewed = store.read(lease.name)
    assert renewed is not None
    assert renewed.renewed_at > lease.renewed_at


async def test_a_batch_whose_lease_is_gone_ends_with_that_reason(
    worker: dict, tmp_path: Path, engine: FakeEngine, store: LeaseStore, lease: Lease
):
    engine.held = asyncio.Event()
    (tmp_path / "in.jsonl").write_text('{"prompt": "a"}\n')
    store.file(lease.name).unlink()
    with pytest.raises(LeaseError, match=f"Lease {lease.name} does not exist"):
        await answer(worker, tmp_path)
    engine.held.set()


async def test_a_retry_of_a_finished_batch_sends_nothing(worker: dict, tmp_path: Path, engine: FakeEngine):
    (tmp_path / "in.jsonl").write_text('{"prompt": "a"}\n')
    first, _ = await answer(worker, tmp_path)
    again, _ = await answer(worker, tmp_path)
    assert again == first
    assert engine.seen["a"] == 1


async def test_failed_rows_that_a_person_asks_for_are_answered_again_once(
    worker: dict, tmp_path: Path, engine: FakeEngine
):
    (tmp_path / "in.jsonl").write_text("".join(f'{{"prompt": "row {i}"}}\n' for i in range(8)))
    engine.failing = {"row 3": [400], "row 5": [400]}
    first, _ = await answer(worker, tmp_path)
    assert (first["ok"], first["failed"]) == (6, 2)
    before = (tmp_path / "out.jsonl").read_bytes().splitlines()
    engine.seen.clear()
    asked = make_context(conf=with_request({}, "task", first["completion_id"]))
    operator = batch(worker, tmp_path, options={"overwrite": True})
    second = await asyncio.to_thread(operator.execute, asked)
    assert engine.seen == {"row 3": 1, "row 5": 1}
    assert (second["ok"], second["failed"]) == (8, 0)
    after = (tmp_path / "out.jsonl").read_bytes().splitlines()
    assert [i for i in range(8) if before[i] != after[i]] == [3, 5]
    assert len(after) == 8
    engine.seen.clear()
    again = await asyncio.to_thread(batch(worker, tmp_path).execute, asked)
    assert (again, engine.seen) == (second, {})


async def test_a_finished_batch_of_a_worker_that_is_gone_is_green(
    worker: dict, tmp_path: Path, engine: FakeEngine
):
    """Airflow was away for longer than the lease, or only the batch was cleared: the output says it all."""
    (tmp_path / "in.jsonl").write_text('{"prompt": "a"}\n')
    first, _ = await answer(worker, tmp_path)
    gone = {**worker, "url": "http://127.0.0.1:9", "where": {**worker["where"], "pid": 2**22}}
    cleared, _ = await answer(gone, tmp_path, run_in="worker")
    assert cleared == first
    operator = batch(gone, tmp_path, run_in="worker")
    event = {"failed": "Worker w ended while the batch ran.", "summary": None, "retryable": False}
    assert operator.execute_complete(make_context(), event) == first
    nobody_waited = ("__fail__", {"error": "Trigger timeout"}, make_context())
    assert operator.resume_execution(*nobody_waited) == first
    (tmp_path / "in.jsonl").write_text('{"prompt": "b"}\n')
    with pytest.raises(AirflowFailException, match="ended while the batch ran"):
        operator.resume_execution("execute_complete", {"event": event}, make_context())
    with pytest.raises(AirflowException, match="Trigger timeout"):
        operator.resume_execution(*nobody_waited)


async def test_a_finished_batch_whose_lease_is_gone_is_green(
    worker: dict, tmp_path: Path, engine: FakeEngine, store: LeaseStore, lease: Lease
):
    """As a warm worker's, which removes it itself: Airflow was away for longer than the warm period."""
    (tmp_path / "in.jsonl").write_text('{"prompt": "a"}\n')
    first, _ = await answer(worker, tmp_path)
    shutil.rmtree(store.directory(lease.name))
    engine.seen.clear()
    cleared, _ = await answer(worker, tmp_path)
    assert (cleared, engine.seen) == (first, {})
    (tmp_path / "in.jsonl").write_text('{"prompt": "b"}\n')
    with pytest.raises(LeaseError, match="does not exist"):
        await answer(worker, tmp_path)


async def test_a_finished_batch_whose_workers_key_went_with_it_is_green(
    worker: dict, tmp_path: Path, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
):
    """As a Secret does with its lease, when only the batch of a finished run is cleared."""

    async def lost(self: ArcadiaHook, handle: WorkerHandle) -> Endpoint:
        raise WorkerLostError("Secret s does not exist.", what_to_do="Clear the run from its reserve task.")

    (tmp_path / "in.jsonl").write_text('{"prompt": "a"}\n')
    first, _ = await answer(worker, tmp_path)
    monkeypatch.setattr(ArcadiaHook, "endpoint", lost)
    engine.seen.clear()
    cleared, _ = await answer(worker, tmp_path)
    assert (cleared, engine.seen) == (first, {})
    (tmp_path / "in.jsonl").write_text('{"prompt": "b"}\n')
    with pytest.raises(AirflowFailException, match="Secret s does not exist"):
        await answer(worker, tmp_path)


def test_the_model_of_a_worker_with_a_name_of_its_own_is_told_by_its_identity(worker: dict, tmp_path: Path):
    handles = [WorkerHandle.from_dict({**worker, "served_model_name": "uid", "model_identity": "ns/model"})]
    spec = build_spec(str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl"), handles, None, None)
    assert (spec.model, spec.model_identity) == ("uid", "ns/model")
    plain = build_spec("in", "out", [WorkerHandle.from_dict(worker)], None, None)
    assert plain.model_identity == ""


async def test_a_batch_that_its_worker_has_forgotten_is_submitted_again_but_not_for_ever(
    worker: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Arcadia's Deployment, or a kubelet, has started the worker's container again."""
    (tmp_path / "in.jsonl").write_text('{"prompt": "a"}\n')
    submitted: list[BatchSpec] = []
    submissions: list[str] = []

    async def submit(self: RemoteBatches, spec: BatchSpec, submission: str) -> str:
        submitted.append(spec)
        submissions.append(submission)
        return "batch_2"

    monkeypatch.setattr(RemoteBatches, "submit", submit)
    operator = batch(worker, tmp_path, run_in="worker")
    event = {"failed": "It was started anew.", "summary": None, "retryable": True, "resubmitted": 0}
    with pytest.raises(TaskDeferred) as deferred:
        await asyncio.to_thread(operator.execute_complete, make_context(), event)
    trigger: Any = deferred.value.trigger
    assert (trigger.batch_id, trigger.resubmitted) == ("batch_2", 1)
    assert submissions == [trigger.submission], "its end is that of this submission"
    assert [spec.input for spec in submitted] == [str(tmp_path / "in.jsonl")]
    again = event | {"resubmitted": MAX_RESUBMISSIONS}
    with pytest.raises(AirflowException, match="started anew"):
        operator.execute_complete(make_context(), again)
    assert len(submitted) == 1


async def test_a_cleared_batch_whose_worker_is_gone_says_what_to_clear(worker: dict, tmp_path: Path):
    (tmp_path / "in.jsonl").write_text('{"prompt": "a"}\n')
    gone = {**worker, "url": "http://127.0.0.1:9", "where": {**worker["where"], "pid": 2**22}}
    with pytest.raises(AirflowFailException, match=r"is not there any more.*Clear the run from its reserve"):
        await answer(gone, tmp_path, run_in="worker")


@pytest.mark.parametrize(
    ("given", "timeout"),
    [({}, 24 * 3600), ({"batch_timeout": 60}, 60), ({"execution_timeout": timedelta(seconds=8)}, 8)],
)
async def test_a_deferred_batch_has_a_time_out(
    worker: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], timeout: float
):
    (tmp_path / "in.jsonl").write_text('{"prompt": "a"}\n')

    async def submit(self: object, spec: object, submission: str) -> str:
        return "batch_1"

    monkeypatch.setattr(RemoteBatches, "submit", submit)
    with pytest.raises(TaskDeferred) as deferred:
        await answer(worker, tmp_path, run_in="worker", **given)
    assert deferred.value.timeout == timedelta(seconds=timeout)


async def test_on_kill_keeps_what_is_answered_and_a_retry_goes_on(
    worker: dict, tmp_path: Path, engine: FakeEngine
):
    (tmp_path / "in.jsonl").write_text("".join(f'{{"prompt": "p{i}"}}\n' for i in range(300)))
    engine.delay = 0.02
    operator = ArcadiaBatchInferenceOperator(
        task_id="answer",
        worker=worker,
        input=str(tmp_path / "in.jsonl"),
        output=str(tmp_path / "out.jsonl"),
        options={"max_in_flight": 8},
    )
    running = asyncio.create_task(asyncio.to_thread(operator.execute, make_context()))
    await asyncio.to_thread(wait_for, lambda: len(engine.seen) >= 50, 20, "the first rows")
    operator.on_kill()
    with pytest.raises(BatchError, match="committed"):
        await running
    before = len(engine.seen)
    assert before < 300
    summary, _ = await answer(worker, tmp_path)
    assert (summary["ok"], summary["attempts"]) == (300, 2)
    # Only the rows that were in flight when it was killed are sent again.
    assert sum(times - 1 for times in engine.seen.values()) <= 8


async def test_the_death_of_the_worker_ends_the_batch_with_its_reason(
    tmp_path: Path, engine: FakeEngine, store: LeaseStore, lease: Lease
):
    handle = make_worker(engine, store, lease, "raise MemoryError('rank 1 was killed')")
    engine.held = asyncio.Event()
    (tmp_path / "in.jsonl").write_text('{"prompt": "a"}\n')
    began = time.monotonic()
    with pytest.raises(
        AirflowFailException, match="ended while the batch ran: MemoryError: rank 1 was killed"
    ):
        await answer(handle.to_dict(), tmp_path)
    assert time.monotonic() - began < 5
    engine.held.set()


async def test_workers_of_different_models_are_refused(worker: dict, tmp_path: Path):
    with pytest.raises(AirflowFailException, match="different models: other, tiny"):
        await answer([worker, {**worker, "served_model_name": "other"}], tmp_path)


FULL_DISK = """
set -e
mount -t tmpfs -o size=8m tmpfs "$1"
exec "$2" -m airflow_arcadia.batch run --input "$3" --output "$1/out.jsonl" --endpoint "$4" --model tiny
"""


@pytest.mark.slow
async def test_a_full_disk_is_named_and_what_is_committed_is_kept(tmp_path: Path, engine: FakeEngine):
    """A file system of 8 MiB in a mount namespace of its own; through the engine's command line."""
    disk = tmp_path / "disk"
    disk.mkdir()
    source = tmp_path / "in.jsonl"
    source.write_text("".join(f'{{"prompt": "p{i}"}}\n' for i in range(20_000)))
    unshare = shutil.which("unshare")
    assert unshare, "util-linux is needed"
    words = [unshare, "--user", "--map-root-user", "--mount", "sh", "-c", FULL_DISK, "sh"]
    words += [str(disk), sys.executable, str(source), engine.url]
    done = await asyncio.to_thread(subprocess.run, words, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode != 0
    assert "full" in done.stderr
    assert "run the batch again" in done.stderr
    assert "Traceback" not in done.stderr
    assert int(re.findall(r"(\d+) rows are committed", done.stderr)[0]) > 0


async def test_failed_rows_are_warned_of_by_code_with_their_file_and_the_first_of_them(
    worker: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "in.jsonl").write_text('{"prompt": "a"}\n{"custom_id": "bad", "nonsense": 1}\nnot JSON\n')
    summary, _ = await answer(worker, tmp_path)
    assert (summary["ok"], summary["failed"]) == (1, 2)
    warned = [line for line in capsys.readouterr().out.splitlines() if "[warning" in line]
    for said in (
        f"2 of 3 rows failed: {summary['errors']}",
        "1 invalid_json",
        "bad: no_prompt: The row has none",
    ):
        assert any(said in line for line in warned)


def test_on_airflow_before_3_3_what_is_kept_beside_the_task_is_an_xcom():
    context = make_context()
    del context["task_state_store"]
    pushed: dict[str, Any] = {}
    context["ti"].xcom_push = lambda key, value: pushed.update({key: value})
    _keep(context, "key", 1)
    assert pushed == {"key": 1}
    context = make_context()
    _keep(context, "key", 1)
    assert context["task_state_store"] == {"key": 1}


async def test_a_batch_is_measured_while_it_runs(
    worker: dict[str, Any], tmp_path: Path, engine: FakeEngine, statsd: Listener
):
    (tmp_path / "in.jsonl").write_text("".join(f'{{"prompt": "p{i}"}}\n' for i in range(30)))
    summary, _ = await answer(worker, tmp_path)
    statsd.read()
    assert statsd.sum("arcadia.batch.rows", outcome="ok", dag_id="dag", task_id="task") == 30
    assert statsd.sum("arcadia.batch.tokens", kind="completion") == summary["completion_tokens"]
    assert statsd.sum("arcadia.batch.ended", outcome="success") == 1
    await answer(worker, tmp_path)
    assert statsd.read().sum("arcadia.batch.ended") == 1, "it was finished before: nothing was done"


async def test_an_attempt_that_fails_is_counted(worker: dict[str, Any], tmp_path: Path, statsd: Listener):
    with pytest.raises(AirflowFailException, match="does not exist"):
        await answer(worker, tmp_path)
    assert statsd.read().sum("arcadia.batch.ended", outcome="failed") == 1


@pytest.mark.parametrize(
    ("policy", "accepted", "ends"),
    [
        ("warn", 0, None),
        ("fail", 1, None),
        ("fail", 0, AirflowFailException),
        ("skip", "0", AirflowSkipException),
    ],
)
async def test_a_finished_batch_with_failed_rows_ends_its_task_as_was_asked_for(
    worker: dict[str, Any],
    tmp_path: Path,
    engine: FakeEngine,
    *,
    policy: str,
    accepted: int | str,
    ends: type[Exception] | None,
):
    (tmp_path / "in.jsonl").write_text('{"prompt": "good"}\n{"prompt": "bad"}\n')
    engine.failing = {"bad": [400]}
    context = make_context()
    operator = batch(worker, tmp_path, on_failed_rows=policy, failed_rows_accepted=accepted)
    if ends is None:
        assert (await asyncio.to_thread(operator.execute, context))["failed"] == 1
    else:
        with pytest.raises(ends, match=r"1 of 2 rows failed.*the failed rows alone in .*errors\.jsonl"):
            await asyncio.to_thread(operator.execute, context)
        assert context["ti"].pushed["return_value"]["ok"] == 1, "the answers are there all the same"
    assert len(rows(tmp_path)) == 2


def test_a_policy_that_does_not_exist_is_refused_when_the_dag_is_parsed(
    worker: dict[str, Any], tmp_path: Path
):
    with pytest.raises(ArcadiaConfigError, match="on_failed_rows"):
        batch(worker, tmp_path, on_failed_rows="ignore")


@pytest.mark.parametrize(
    ("field", "rendered"), [("on_failed_rows", "ignore"), ("failed_rows_accepted", "few")]
)
async def test_a_template_that_renders_to_no_policy_is_refused_before_a_row_is_sent(
    worker: dict, tmp_path: Path, engine: FakeEngine, field: str, rendered: str
):
    (tmp_path / "in.jsonl").write_text('{"prompt": "a"}\n')
    operator = batch(worker, tmp_path, **{field: "{{ params.policy }}"})
    setattr(operator, field, rendered)
    with pytest.raises(AirflowFailException, match=field):
        await asyncio.to_thread(operator.execute, make_context())
    assert engine.seen.total() == 0
    assert not (tmp_path / "out.jsonl").exists()


def test_a_batch_that_ended_in_the_worker_says_why_line_by_line(
    worker: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "in.jsonl").write_text('{"prompt": "p"}\n')
    event = {"failed": "It broke.\nNothing runs.\nRepair it.", "retryable": False, "summary": None}
    with pytest.raises(AirflowFailException, match="It broke"):
        batch(worker, tmp_path, run_in="worker").execute_complete(make_context(), event)
    errors = [line for line in capsys.readouterr().out.splitlines() if "[error" in line]
    assert [text in line for text, line in zip(event["failed"].splitlines(), errors, strict=True)] == [
        True
    ] * 3
