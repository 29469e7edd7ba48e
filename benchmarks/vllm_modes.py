"""vLLM by itself, for comparison: ``LLM.chat`` offline, and ``vllm run-batch``.

Run by the worker's Python: ``python -m benchmarks.vllm_modes MODE MODEL ROWS OUTPUT FLAG…``; the flags are
the server's own. The engine is loaded once; each line on standard input runs the batch once more and is
answered with its seconds as JSON.
"""

from __future__ import annotations

import asyncio
import sys
import time
from argparse import Namespace
from pathlib import Path

from benchmarks.peer_protocol import answer, engine_limits
from benchmarks.workloads import SERVED_NAME, request_bodies


def offline(model: str, rows: Path, output: Path, flags: list[str]) -> None:
    """``LLM.chat`` on all rows at once."""
    from vllm import LLM, SamplingParams

    llm = LLM(model=model, **engine_limits(model, flags))
    bodies = request_bodies(rows)
    messages = [body["messages"] for body in bodies]
    sampling = [
        SamplingParams(
            temperature=body["temperature"], max_tokens=body["max_tokens"], ignore_eos=body["ignore_eos"]
        )
        for body in bodies
    ]
    answer("ready")
    for _ in sys.stdin:
        began = time.monotonic()
        done = llm.chat(messages, sampling, use_tqdm=False)
        seconds = time.monotonic() - began
        answer({"seconds": seconds, "tokens": sum(len(d.outputs[0].token_ids) for d in done)})


def run_batch(model: str, rows: Path, output: Path, flags: list[str]) -> None:
    """``vllm run-batch``, without its start."""
    from vllm.entrypoints.launchers import run_batch as runner
    from vllm.entrypoints.launchers.api_server.entry import build_async_engine_client
    from vllm.usage.usage_lib import UsageContext

    sys.argv = ["run-batch", "-i", str(rows), "-o", str(output), "--model", model, *flags]
    sys.argv += ["--served-model-name", SERVED_NAME]
    args: Namespace = runner.parse_args()

    async def serve() -> None:
        async with build_async_engine_client(args, usage_context=UsageContext.OPENAI_BATCH_RUNNER) as engine:
            answer("ready")
            while await asyncio.to_thread(sys.stdin.readline):
                began = time.monotonic()
                await runner.run_batch(engine, args)
                answer({"seconds": time.monotonic() - began})

    asyncio.run(serve())


if __name__ == "__main__":
    mode, model, rows, output, *flags = sys.argv[1:]
    {"offline": offline, "run_batch": run_batch}[mode](model, Path(rows), Path(output), flags)
