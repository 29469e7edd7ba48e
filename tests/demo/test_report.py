"""The demo's report: what was seen, and when that is a problem."""

from demo.observer import Seen
from demo.report import Answers, count, problems, summarise, table

GPU = {"GPU": 1.0}
SEEN = Seen("2.60.0", "3.11.7", 2.0, 2.0, (GPU, GPU), 2, ("tiny",))
INPUTS = [{"prompt": "a"}, {"messages": [{"role": "user", "content": "b"}]}, {"body": {"prompt": "c"}}]


def answered(text: str) -> dict:
    body = {"choices": [{"text": text}], "usage": {"completion_tokens": 2}}
    return {"response": {"status_code": 200, "body": body}, "error": None}


def test_only_whole_answers_count():
    outputs = [answered("A"), {"response": None, "error": {"code": "x"}}, answered("C")]
    answers = count(INPUTS, outputs)
    assert (answers.rows, answers.ok, answers.failed, answers.tokens) == (3, 2, 1, 4)
    assert answers.samples == (("a", "A"), ("c", "C"))


def test_rows_without_a_line_are_failed_rows():
    assert count(INPUTS, [answered("A")]).failed == 2


def test_the_size_is_what_was_seen_not_what_was_asked_for():
    assert SEEN.tensor_parallel_size == 2
    assert Seen(bundles=(GPU, GPU), ranks=1).tensor_parallel_size == 0
    assert Seen(bundles=({"GPU": 2.0},), ranks=1).tensor_parallel_size == 0


def test_a_run_that_was_all_it_should_be_has_no_problems():
    summary = summarise(Answers(3, 3, 6, ()), SEEN, {"answer": 2.0}, [])
    assert problems(summary, wanted_size=2, model="tiny", airflow_status=0) == []
    assert "3 ok, 0 failed" in table(summary, Answers(3, 3, 6, ()), "out.jsonl")
    assert summary["ray"]["placement_group_bundles"] == [GPU, GPU]


def test_everything_that_was_not_is_named():
    summary = summarise(Answers(3, 2, 4, ()), Seen(), {}, ["process 7"])
    found = problems(summary, wanted_size=2, model="tiny", airflow_status=1)
    assert len(found) == 6
    assert "left behind: process 7" in found
