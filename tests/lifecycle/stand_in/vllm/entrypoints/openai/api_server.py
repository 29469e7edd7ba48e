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


def make_app(model: str, delay: float) -> FastAPI:
    """Every row is answered after ``delay`` seconds."""
    app = FastAPI()

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": model, "object": "model", "max_model_len": 512}]}

    async def answer(request: Request) -> dict[str, Any]:
        body = await request.json()
        prompts = body.get("prompt", "chat")
        count = len(prompts) if isinstance(prompts, list) and prompts and isinstance(prompts[0], str) else 1
        # The worker's own look at itself is quick.
        await asyncio.sleep(0 if body.get("max_tokens") == 1 else delay)
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
    options, _ = parser.parse_known_args()
    subprocess.Popen([sys.executable, "-c", ENGINE], start_new_session=True)
    time.sleep(options.load)
    if options.die:
        raise MemoryError("the engine died at its start")
    app = make_app(options.served_model_name, options.delay)
    module, _, name = options.middleware.rpartition(".")
    app.add_middleware(getattr(importlib.import_module(module), name))
    uvicorn.run(app, host=options.host, port=options.port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
