"""What a worker's answer about a batch means."""

import pytest

from airflow_arcadia.batch import BatchSummary, Progress
from airflow_arcadia.batch.batch_api import Running, judge

PROGRESS = Progress(4, 9, 4, 0, 2.0, 8.0, 2.5)


def test_the_progress_of_a_worker_of_another_version_is_read_as_far_as_it_is_known():
    raw = {**PROGRESS.to_dict(), "of_a_later_version": 1}
    del raw["prompt_tokens"]
    assert judge({"status": "in_progress", "progress": raw}) == Running(PROGRESS)


@pytest.mark.parametrize("told", [{"done": 1}, {**PROGRESS.to_dict(), "done": "many"}, [1], "half"])
def test_a_progress_that_makes_no_sense_does_not_end_a_batch_that_runs(told: object):
    assert judge({"status": "in_progress", "progress": told}) == Running(None)


def test_the_summary_of_a_worker_of_a_later_version_is_read():
    summary = BatchSummary(rows=1, ok=1, failed=0, seconds=0.1, tokens_per_s=10.0, output="out.jsonl")
    assert BatchSummary.from_dict({**summary.to_dict(), "of_a_later_version": 1}) == summary
