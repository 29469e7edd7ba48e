"""What a client may ask of /v1/batches."""

from typing import Any

import pytest

from airflow_arcadia.exceptions import ArcadiaError
from airflow_arcadia.runtime.batch_request import parse

SOURCE = {"input_file_id": "s3://b/in.jsonl"}


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def test_the_output_is_named_by_a_field_by_metadata_or_by_the_input():
    assert parse(SOURCE, "m", trusted=False).spec.output == "s3://b/in.jsonl.answers.jsonl"
    by_metadata = parse({**SOURCE, "metadata": {"output": "s3://b/x"}}, "m", trusted=False)
    assert by_metadata.spec.output == "s3://b/x"
    assert parse({**SOURCE, "output": "s3://b/y"}, "m", trusted=False).spec.output == "s3://b/y"


@pytest.mark.parametrize(
    "body",
    [
        [],
        None,
        {},
        {"input_file_id": 5},
        {**SOURCE, "output": ["a"]},
        {**SOURCE, "endpoint": "/v1/audio/speech"},
        {**SOURCE, "endpoint": {"a": 1}},
        {**SOURCE, "metadata": "text"},
        {**SOURCE, "metadata": ["a"]},
        {**SOURCE, "metadata": {"a": 1}},
        {**SOURCE, "metadata": {"a": "b" * 513}},
        {**SOURCE, "metadata": {str(n): "b" for n in range(17)}},
        {**SOURCE, "parameters": "x"},
        {**SOURCE, "parameters": {"a": nested(100)}},
        {**SOURCE, "parameters": {"a": "\ud800"}},
        {**SOURCE, "options": ["limit"]},
        {**SOURCE, "options": {"limit": 0}},
        {**SOURCE, "options": {"limit": "many"}},
        {**SOURCE, "options": {"no_such": 1}},
    ],
)
@pytest.mark.parametrize("trusted", [True, False])
def test_a_wrong_request_is_an_error_that_says_so(body: Any, trusted: bool):
    with pytest.raises(ArcadiaError):
        parse(body, "m", trusted=trusted)


@pytest.mark.parametrize(
    "options", [{"max_in_flight": 10**6}, {"segment_rows": 10**6}, {"keep_segments": True}]
)
def test_only_the_runs_own_tasks_may_take_the_servers_memory_and_disk(options: dict[str, Any]):
    parse({**SOURCE, "options": options}, "m", trusted=True)
    with pytest.raises(ArcadiaError):
        parse({**SOURCE, "options": options}, "m", trusted=False)


def test_a_client_may_say_which_columns_of_its_table_are_request_fields():
    options = {"columns_as_parameters": ["seed"], "prompt_template": "{{ city }}"}
    spec = parse({**SOURCE, "options": options}, "m", trusted=False).spec
    assert list(spec.columns_as_parameters) == ["seed"]
