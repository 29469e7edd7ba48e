"""A stand-in for vLLM's server: quick to start, slow to answer, and as hard to end as the real one.

Its engine process ignores SIGTERM and maps a file under /dev/shm that it never unlinks.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request

ENGINE = """
import mmap, os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
path = f"/dev/shm/psm_life{os.getpid()}"
with open(path, "wb+") as file:
    file.truncate(4096)
    kept = mmap.mmap(file.fileno(), 4096)
time.sleep(3600)
"""


ROWS_BEFORE_A_HOLD = 20


def hold(marker: Path | None) -> bool:
    """Say that this step is reached; whether to wait until the run is released."""
    if marker is None:
        return False
    marker.parent.mkdir(parents=True, exist_ok=True)
    marker.touch()
    return not marker.with_name("released").exists()


def make_app(model: str, delay: float, answering_at: Path | None) -> FastAPI:
    """Every row is answered after ``delay`` seconds; with ``answering_at`` the first ones alone."""
    app = FastAPI()
    answered = 0

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {}

    @app.get("/version")
    async def version() -> dict[str, Any]:
        return {"version": "stand-in"}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": model, "object": "model", "max_model_len": 512}]}

    async def answer(request: Request) -> dict[str, Any]:
        body = await request.json()
        prompts = body.get("prompt", "chat")
        count = len(prompts) if isinstance(prompts, list) and prompts and isinstance(prompts[0], str) else 1
        if body.get("max_tokens") != 1:  # the worker's own look at itself is quick
            nonlocal answered
            answered += count
            await asyncio.sleep(delay)
            while answered > ROWS_BEFORE_A_HOLD and hold(answering_at):  # noqa: ASYNC110 - another process'
                await asyncio.sleep(0.2)
        usage = {"prompt_tokens": count, "completion_tokens": count, "total_tokens": 2 * count}
        text = [{"index": i, "text": "1", "finish_reason": "stop", "logprobs": None} for i in range(count)]
        return {
            "id": "x",
            "object": "text_completion",
            "created": 0,
            "model": model,
            "choices": text,
            "usage": usage,
        }

    app.post("/v1/completions")(answer)
    return app


def main() -> None:
    """Serve."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--served-model-name")
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    parser.add_argument("--middleware")
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--load", type=float, default=0.0)
    parser.add_argument("--die", action="store_true")
    parser.add_argument("--loading-at", type=Path, help="a hold while the model is loaded")
    parser.add_argument("--answering-at", type=Path, help="a hold in the middle of a batch")
    options, _ = parser.parse_known_args()
    subprocess.Popen([sys.executable, "-c", ENGINE], start_new_session=True)
    time.sleep(options.load)
    while hold(options.loading_at):
        time.sleep(0.2)
    if options.die:
        raise MemoryError("the engine died at its start")
    app = make_app(options.served_model_name, options.delay, options.answering_at)
    module, _, name = options.middleware.rpartition(".")
    app.add_middleware(getattr(importlib.import_module(module), name))
    uvicorn.run(app, host=options.host, port=options.port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
