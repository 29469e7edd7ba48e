"""What a batch tells OpenLineage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from airflow_arcadia.batch import BatchSummary
from airflow_arcadia.operators._lineage import FACET, dataset_name
from airflow_arcadia.operators.batch import ArcadiaBatchInferenceOperator
from tests.airflow_context import make_context

SUMMARY = BatchSummary(
    rows=4,
    ok=3,
    failed=1,
    seconds=2.0,
    tokens_per_s=4.0,
    output="s3://answers/a.jsonl",
    prompt_tokens=20,
    completion_tokens=8,
    gpu_seconds=4.0,
    model="qwen",
)


def batch() -> ArcadiaBatchInferenceOperator:
    return ArcadiaBatchInferenceOperator(
        task_id="answer", worker={}, input="s3://prompts/a.jsonl", output="s3://answers/a.jsonl"
    )


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("s3://bucket/a/b.jsonl", ("s3://bucket", "a/b.jsonl")),
        ("gcs://bucket/a.jsonl", ("gs://bucket", "a.jsonl")),
        (
            "abfs://box@account.dfs.core.windows.net/a.jsonl",
            ("abfss://box@account.dfs.core.windows.net", "a.jsonl"),
        ),
        ("/data/a.jsonl", ("file", "/data/a.jsonl")),
        ("file:///data/a.jsonl", ("file", "/data/a.jsonl")),
        ("a.jsonl", ("file", str(Path.cwd() / "a.jsonl"))),
        ("ftp://me:secret@host/a.jsonl", ("ftp://me:***@host", "a.jsonl")),
    ],
)
def test_a_file_has_the_name_that_openlineage_gives_it(uri: str, name: tuple[str, str]):
    assert dataset_name(uri) == name


def test_before_its_end_a_batch_tells_its_input_and_output():
    pytest.importorskip("airflow.providers.openlineage")
    told = batch().get_openlineage_facets_on_start()
    assert [(item.namespace, item.name) for item in told.inputs] == [("s3://prompts", "a.jsonl")]
    assert [(item.namespace, item.name) for item in told.outputs] == [("s3://answers", "a.jsonl")]


def test_a_finished_batch_tells_rows_model_and_tokens():
    pytest.importorskip("airflow.providers.openlineage")
    from openlineage.client.serde import Serde

    operator = batch()
    event: dict[str, Any] = {"summary": SUMMARY.to_dict(), "failed": None, "retryable": False}
    operator.execute_complete(make_context(), event)
    told = operator.get_openlineage_facets_on_complete(None)
    (answers,) = told.outputs
    assert answers.outputFacets["outputStatistics"].rowCount == 4
    facet = Serde.to_dict(told.run_facets[FACET])
    expected = {
        "model": "qwen",
        "ok": 3,
        "failed": 1,
        "promptTokens": 20,
        "completionTokens": 8,
        "gpuSeconds": 4.0,
    }
    assert {key: facet[key] for key in expected} == expected
    assert facet["_producer"]
