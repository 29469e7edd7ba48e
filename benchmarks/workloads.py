"""Models and rows that are measured."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from benchmarks.results import ROOT

SERVED_NAME = "bench"
TOKENS = 32
PARAMETERS = {"max_tokens": TOKENS, "temperature": 0.0, "ignore_eos": True}


@dataclass(frozen=True)
class Workload:
    """A model and how many rows it answers in a round.

    :param model: folder of the model.
    :param made_by: module, run by the worker's Python with the folder, that makes it where it is missing.
    :param rows: chat rows of a round, each answered with ``TOKENS`` tokens.
    :param rounds: counted rounds, unless said otherwise.
    :param ray_batch: rows of one batch of Ray Data LLM; divides ``rows``.
    """

    name: str
    title: str
    model: Path
    made_by: str
    rows: int
    rounds: int
    ray_batch: int


TINY = Workload(
    name="tiny",
    title="a random Llama of 2.9 M parameters",
    model=ROOT / "var" / "models" / "tiny-llama",
    made_by="tests.tiny_model",
    rows=1024,
    rounds=3,
    ray_batch=256,
)
"""The worst case: its engine is so quick that what surrounds it shows."""

SMOLLM2 = Workload(
    name="smollm2",
    title="SmolLM2-135M-Instruct",
    model=ROOT / "var" / "models" / "SmolLM2-135M-Instruct",
    made_by="demo.model",
    rows=192,
    rounds=2,
    ray_batch=64,
)
"""The smallest model that a person would use on a CPU."""


def write_chat_rows(path: Path, count: int, *, words: int = 0) -> None:
    """OpenAI batch rows, no two alike.

    :param words: words that are added to each prompt.
    """
    filling = " ".join(["copy"] * words)
    with path.open("wb") as file:
        for number in range(count):
            text = f"Question {number}: how does shutil copy file {number * 7919} to its place? {filling}"
            body = {"model": SERVED_NAME, "messages": [{"role": "user", "content": text}], **PARAMETERS}
            row = {"custom_id": str(number), "method": "POST", "url": "/v1/chat/completions", "body": body}
            file.write(orjson.dumps(row) + b"\n")


def write_prefix_rows(path: Path, *, groups: int, rows: int, words: int) -> None:
    """Prompts that share long beginnings, shuffled.

    :param groups: different beginnings.
    :param rows: prompts with the same beginning.
    :param words: length of a beginning.
    """
    shuffle = random.Random(0)
    vocabulary = ["import", "return", "self", "value", "path", "copy", "file", "name", "mode", "error"]
    prefixes = [" ".join(shuffle.choices(vocabulary, k=words)) for _ in range(groups)]
    prompts = [f"{prefix} question {number}" for prefix in prefixes for number in range(rows)]
    shuffle.shuffle(prompts)
    path.write_bytes(b"".join(orjson.dumps({"prompt": prompt}) + b"\n" for prompt in prompts))


def request_bodies(path: Path) -> list[dict[str, Any]]:
    """The requests of a file of chat rows."""
    return [orjson.loads(line)["body"] for line in path.read_bytes().splitlines()]
