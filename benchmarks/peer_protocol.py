"""What the programs that run in the worker's environment have in common: arguments in, answers out."""

from __future__ import annotations

import json
from typing import Any

PREFIX = "BENCH "
ENGINE_LIMITS = (
    "max_num_seqs",
    "max_num_batched_tokens",
    "max_model_len",
    "enforce_eager",
    "kv_cache_memory_bytes",
    "dtype",
)
"""The engine limits that all ways share."""


def answer(value: Any) -> None:
    """Print one line for the benchmark; vLLM prints lines of its own."""
    print(PREFIX + json.dumps(value), flush=True)


def engine_limits(model: str, flags: list[str]) -> dict[str, Any]:
    """The engine's limits by the names that vLLM's Python API has for the server's flags."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = EngineArgs.add_cli_args(FlexibleArgumentParser())
    arguments = EngineArgs.from_cli_args(parser.parse_args(["--model", model, *flags]))
    return {name: getattr(arguments, name) for name in ENGINE_LIMITS}
