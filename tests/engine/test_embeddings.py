"""The same worker serves an embedding model: both protocols, and batches."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_arcadia.batch import BatchSpec, Endpoint, run_batch
from tests.engine.serving import TINY_ENGINE, Served, served

pytestmark = [pytest.mark.engine, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory, worker_python: str, tiny_model: str) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("embeddings")
    args = (*TINY_ENGINE, "--runner", "pooling", "--convert", "embed")
    with served(folder, worker_python, tiny_model, served_model_name="tiny", extra_args=args) as running:
        yield running


def test_a_batch_of_embeddings_and_fastchats_call_agree(worker: Served, tmp_path: Path):
    texts = [f"text {number}" for number in range(20)]
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps({"input": text}) + "\n" for text in texts))
    spec = BatchSpec(str(source), str(tmp_path / "out.jsonl"), "tiny", {"max_tokens": 5})
    summary = run_batch(spec, [Endpoint(worker.url)])
    assert (summary.ok, summary.failed) == (20, 0)
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    vectors = [row["response"]["body"]["data"][0]["embedding"] for row in rows]
    told = worker.post("/worker_get_embeddings", {"input": texts}).json()
    assert told["token_num"] > 20
    for ours, fastchats in zip(vectors, told["embedding"], strict=True):
        assert ours == pytest.approx(fastchats, abs=1e-4)
    assert len({tuple(vector) for vector in vectors}) == 20


def test_what_the_model_cannot_do_gets_fastchats_code(worker: Served):
    assert worker.post("/worker_generate", {"prompt": "a"}).json()["error_code"] != 0
