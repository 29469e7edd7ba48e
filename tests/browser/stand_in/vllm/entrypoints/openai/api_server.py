"""The lifecycle tests' stand-in for vLLM's server, with metrics for the page, and rows that fail."""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse

LIFECYCLE = Path(__file__).parents[5] / "lifecycle"
PLAIN = LIFECYCLE / "stand_in" / "vllm" / "entrypoints" / "openai" / "api_server.py"
METRICS = """\
vllm:num_requests_running{{engine="0"}} {running}.0
vllm:num_requests_waiting{{engine="0"}} 0.0
vllm:kv_cache_usage_perc{{engine="0"}} 0.25
vllm:generation_tokens_total{{engine="0"}} {generated}.0
"""


def plain() -> ModuleType:
    """The lifecycle tests' stand-in."""
    spec = importlib.util.spec_from_file_location("plain_stand_in", PLAIN)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def observe(app: FastAPI, reject_while: Path | None) -> FastAPI:
    """The same application with ``/metrics``.

    :param reject_while: a file: while it is there, prompts with the word *poison* are refused.
    """
    counts = {"running": 0, "generated": 0}

    @app.get("/metrics")
    async def metrics() -> Response:
        return PlainTextResponse(METRICS.format(**counts))

    @app.middleware("http")
    async def count(request: Request, answer: Any) -> Response:
        if request.url.path != "/v1/completions":
            return await answer(request)
        body = json.loads(await request.body())
        if reject_while is not None and reject_while.exists() and "poison" in str(body.get("prompt")):
            error = {"message": "This prompt is refused.", "type": "BadRequestError", "code": 400}
            return JSONResponse({"error": error}, 400)
        counts["running"] += 1
        try:
            return await answer(request)
        finally:
            counts["running"] -= 1
            counts["generated"] += 1

    return app


def main() -> None:
    """Serve."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--reject-while", type=Path)
    reject_while = parser.parse_known_args()[0].reject_while
    module = plain()
    made = module.make_app
    module.make_app = lambda *words: observe(made(*words), reject_while)
    module.main()


if __name__ == "__main__":
    main()
