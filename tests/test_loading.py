"""How far a model is loaded, from lines as vLLM writes them."""

from __future__ import annotations

import pytest

from airflow_arcadia.loading import Loading

LOG = [
    "INFO 11-26 01:00:00 [api_server.py:1] vLLM API server version 0.32.0",
    "(EngineCore pid=7) INFO 11-26 01:00:01 [core.py:134] Initializing a V1 LLM engine (v0.32.0)",
    "(Worker pid=8) INFO 11-26 01:00:02 [cpu_model_runner.py:68] Starting to load model /models/m...",
    "(Worker pid=8) Loading safetensors checkpoint shards:   0% Completed | 0/4 [00:00<?, ?it/s]",
    "(Worker pid=8) Loading safetensors checkpoint shards:  50% Completed | 2/4 [00:01<00:01,  2.00it/s]",
    "(Worker pid=9) Loading safetensors checkpoint shards:   0% Completed | 0/4 [00:00<?, ?it/s]",
    "(Worker pid=8) INFO 11-26 01:00:04 [default_loader.py:502] Loading weights took 1.90 seconds",
    "(Worker pid=9) Loading safetensors checkpoint shards: 100% Completed | 4/4 [00:02<00:00,  2.00it/s]",
    "(Worker pid=8) Capturing CUDA graphs (mixed prefill-decode, PIECEWISE):  45%|####5     | 30/67",
    "(EngineCore pid=7) INFO [core.py:403] init engine (profile, create kv cache, warmup model) took 5.10 s",
]


def reached(lines: int) -> str:
    return str(Loading(LOG[:lines]))


def test_nothing_is_said_before_the_first_sign():
    assert reached(2) == ""


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (3, "loading the weights"),
        (4, "loading the weights (0 %)"),
        (5, "loading the weights (50 %)"),
        (7, "warming up the engine"),
        (9, "warming up the engine (45 %)"),
        (10, "starting the server"),
    ],
)
def test_the_stages_follow_the_log(lines: int, told: str):
    assert reached(lines) == told


def test_a_second_rank_takes_nothing_back():
    assert reached(6) == "loading the weights (50 %)"
    assert reached(8) == "warming up the engine"
